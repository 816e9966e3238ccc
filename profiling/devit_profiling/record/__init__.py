"""The raw data of a run: what was recorded, and its folder on disk."""
