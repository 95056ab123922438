"""The small Gemma 2 that comes with gemline, which runs when no model is named, and the rules of its tokenizer."""
