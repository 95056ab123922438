"""What operators do to a release on Kubernetes: from one to the next, checked, in shares and back; its certificates."""
