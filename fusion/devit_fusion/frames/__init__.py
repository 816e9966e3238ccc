"""Requests become frames, and frames become answers."""
