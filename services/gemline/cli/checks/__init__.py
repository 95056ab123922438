"""What `gemline doctor` looks at. Each check is a function without side effects that stay."""
