"""How the demo model is made: its data, its tokenizer, its sizes and its scores."""
