"""Graphs whose products compute in INT8: what comes in, scales, smoothing, and what stays in higher precision."""
