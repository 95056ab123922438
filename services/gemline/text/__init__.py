"""Text and token ids: the tokenizer, Gemma's turns, incremental detokenizing. Knows no torch and no network."""
