"""The ways to CUDA checked on any NVIDIA GPU, without TensorRT: a small kernel stands in the place of an engine."""
