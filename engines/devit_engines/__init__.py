"""Device, at build time and to run: a bundle becomes an engine, an engine gives features."""

import os

# ONNX Runtime 1.32 writes a device id to the user's cache and queues reports to its maker, from the moment of its
# import; nothing here may do that, least of all in the process whose joules are measured.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
