"""Gemma 2 itself: config, weights, model, blocks, scheduler, sampling. Knows no network."""
