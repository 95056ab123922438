"""The `gemline` command."""
