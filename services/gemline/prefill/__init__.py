"""The prefill worker: a prompt in, its keys, values and first token out."""
