"""Moving from one release of the platform on Kubernetes to the next: checked, in shares, and back at once."""
