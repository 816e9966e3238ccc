"""TensorRT: building a plan in a process of its own, and running it."""
