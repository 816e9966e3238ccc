"""Training workstation: one large Vision Transformer becomes N trained submodels and a fusion head."""
