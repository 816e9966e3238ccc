"""CUDA as the engines need it, by whichever binding the device has."""
