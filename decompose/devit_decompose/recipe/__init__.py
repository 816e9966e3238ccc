"""The recipe: its schema, its file, and what is refused before training."""
