"""What is true across processes, kept in Redis: workers, API keys, sessions. The only package that imports redis."""
