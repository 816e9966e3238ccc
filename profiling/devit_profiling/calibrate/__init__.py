"""Calibration of a board against an external power meter."""
