"""Training workstation: trained submodels become an ONNX bundle, the only thing that travels to devices."""

import os

# ONNX Runtime 1.32 writes a device id to the user's cache and queues reports to its maker, from the moment of its
# import; nothing here may do that, least of all in the process whose joules are measured.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

HEADROOM = 4.0
"""How many times the largest number of the golden images FP16 must hold, unless the user wants it otherwise."""
