//! A real Kubernetes for tests and the demo.
