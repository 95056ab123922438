"""Trains small Gemma 2 models in plain PyTorch: from text alone, or from what a larger one would have said."""
