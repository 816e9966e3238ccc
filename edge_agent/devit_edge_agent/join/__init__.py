"""A fresh device joins a fleet by a short code: ``devit join``."""
