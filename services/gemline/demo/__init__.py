"""A small Gemma 2 checkpoint that gemline makes by itself: what runs when no model is named, and what tests run on."""
