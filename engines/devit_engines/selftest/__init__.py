"""A small ViT bundle that is shipped with the engines, built and checked on this very device."""
