"""What a Gemma 2 model needs of GPUs, and the least time they take: arithmetic alone, on any machine."""
