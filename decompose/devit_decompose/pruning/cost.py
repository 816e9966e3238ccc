"""What a model costs: multiply-accumulates of one image, and parameters, counted from its configuration."""

from __future__ import annotations

from devit_decompose.models.model import ModelConfig


def macs(config: ModelConfig, *, with_head: bool = True) -> int:
    """Count the multiply-accumulates of one image.

    Convolutions, linear layers and both attention products are counted; norms, activations and the normalisation
    of pixels are not, as in the papers' figures.
    """
    height, width, channels = config.image_size
    total = 0
    for layer in config.stem:
        height, width = (-(-side // layer.stride) for side in (height, width))
        total += height * width * layer.kernel**2 * channels * layer.width
        if layer.max_pool:
            height, width = (-(-side // 2) for side in (height, width))
        channels = layer.width
    tokens = config.tokens
    for heads, head_width, neurons in zip(config.heads, config.head_widths, config.neurons, strict=True):
        inner = heads * head_width
        total += tokens * channels * (4 * inner + 2 * neurons)  # query, key, value, projection; MLP
        total += 2 * tokens**2 * inner  # query x key, weights x value
    if config.prefix_tokens == 0:
        total += 2 * tokens * channels  # pooling: one score per token, then the weighted sum
    return total + (config.feature_dim * len(config.classes) if with_head else 0)


def parameters(config: ModelConfig) -> int:
    """Count the trained numbers, the model's own heads included."""
    channels = config.image_size[2]
    has_bias = config.backbone != "cct"
    total = 0
    for layer in config.stem:
        total += layer.kernel**2 * channels * layer.width + (2 * layer.width if layer.batch_norm else layer.width)
        channels = layer.width
    total += (config.tokens + config.prefix_tokens) * channels  # positions, and the prefix tokens themselves
    for heads, head_width, neurons in zip(config.heads, config.head_widths, config.neurons, strict=True):
        inner = heads * head_width
        total += 3 * (channels + has_bias) * inner + inner * channels + channels
        total += 2 * channels * neurons + neurons + channels + 4 * channels
    pool = channels + 1 if config.prefix_tokens == 0 else 0
    return total + 2 * channels + pool + max(1, config.prefix_tokens) * (channels + 1) * len(config.classes)
