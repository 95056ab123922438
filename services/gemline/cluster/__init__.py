"""What is true across processes, kept in Redis: the workers and the API keys. The only package that imports redis."""
