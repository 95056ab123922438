"""gemline serves Google's Gemma 2 models to many tenants, from one laptop to a Kubernetes cluster of H100s."""

__version__ = "0.1.0"
