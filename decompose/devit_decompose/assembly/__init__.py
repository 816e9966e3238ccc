"""A cell from pretrained backbones: frozen features and a linear head, no training loop."""
