"""Fusion node, all day: features of N devices become one answer."""
