"""Gemma 2's operations on tensors. `reference` is plain torch and specifies each; faster backends sit beside it."""
