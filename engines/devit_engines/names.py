"""The reference to one model of a bundle, and the names of the back ends."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["tensorrt", "ort"]
ModelRef = int | Literal["baseline"]
"""Index of a submodel, or the bundle's baseline model."""


def role_of(model: ModelRef) -> tuple[Literal["baseline", "submodel"], int | None]:
    """Give the role and the index by which a manifest names a model's files."""
    return ("baseline", None) if model == "baseline" else ("submodel", model)


def name_of(model: ModelRef) -> str:
    """Name a model for people.

    >>> name_of(0), name_of("baseline")
    ('submodel 0', 'baseline')
    """
    return model if model == "baseline" else f"submodel {model}"
