"""The gateway's core over real workers: a tiny Gemma 2, a real tokenizer, a real Redis."""
