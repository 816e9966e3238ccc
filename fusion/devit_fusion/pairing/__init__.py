"""Devices that join by a short code: the node's side of ``devit pair``."""
