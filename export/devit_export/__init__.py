"""Training workstation: trained submodels become an ONNX bundle, the only thing that travels to devices."""
