"""A load generator for any server that speaks OpenAI's API. Knows nothing of our engine; needs Python alone."""
