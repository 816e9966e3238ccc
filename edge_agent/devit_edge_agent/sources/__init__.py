"""The device's own images: cameras, streams and folders."""
