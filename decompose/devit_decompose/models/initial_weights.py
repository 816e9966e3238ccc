"""The trained weights a model starts from: timm's published ones, or a file's."""

from __future__ import annotations

from pathlib import Path

from devit_contract.errors import ManifestError
from devit_decompose.models.model import Model, ModelConfig
from devit_decompose.models.timm_models import published_tensors
from devit_decompose.models.weights import SAME_SHAPE, filled_model, read_state, translated


def initial_weights(source: str, config: ModelConfig, *, fresh_head: bool = False) -> Model:
    """Build a model with trained weights to start from, ready for inference.

    Positions of another image size are resampled. A ``timm:NAME`` model is adapted to the mean and std of the
    configuration; a file must have been trained with them.

    Args:
        source: ``timm:NAME`` (needs the network), or a file; its tensors' names show whose it is.
        config: The model to fill.
        fresh_head: Replace a head that is missing or has another number of classes by a new one; the caller seeds
            torch. A head with as many classes is kept.

    Raises:
        InputError: The source cannot be read.
        ManifestError: Its tensors are not those of the configuration; they are named.
    """
    if source.startswith("timm:"):
        return filled_model(config, published_tensors(source.removeprefix("timm:"), config, fresh_head=fresh_head))
    state = read_state(Path(source))
    try:
        return filled_model(config, translated(state, config, fresh_head=fresh_head))
    except ManifestError as err:
        raise ManifestError(f"{source}: {err}: {SAME_SHAPE}") from err
