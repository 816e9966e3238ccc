"""A small ViT bundle that is shipped with the engines, built and judged on this very device."""
