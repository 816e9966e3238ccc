"""A smaller model from a larger one: scores, shapes, and the cut."""
