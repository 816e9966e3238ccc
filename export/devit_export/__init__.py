"""Training workstation: trained submodels become an ONNX bundle, the only thing that travels to devices."""

import os

# ONNX Runtime 1.32 writes a device id to the user's cache and queues reports to its maker, from the moment of its
# import; nothing here may do that, least of all in the process whose joules are measured.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
