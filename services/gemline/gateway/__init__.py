"""The public front: HTTP and gRPC in, token streams out. Holds no model and pulls in no torch."""
