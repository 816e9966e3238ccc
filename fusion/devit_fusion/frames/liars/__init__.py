"""Devices whose features do not fit those of the others."""
