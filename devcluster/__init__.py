"""A real one-node Kubernetes for the demo and the tests."""
