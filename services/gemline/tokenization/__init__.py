"""The tokenization worker: text in, token ids out."""
