"""``assembly.json``: how a cell was assembled from trained backbones, beside its ``decomposition.json``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from devit_contract.artefacts.files import read_json
from devit_decompose.recipe.schema import DataRecipe

SCHEMA = 1
FILE_NAME = "assembly.json"
_HINT = "make the models again with devit assemble"


class BackboneRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One trained model of the cell, by itself."""

    name: str
    """As timm calls it."""
    weights_sha256: str
    """Of its shape and weights without a head."""
    probe_validation_accuracy: float
    """Of a linear head on this backbone's features alone, in 0 to 1; so is the next."""
    probe_test_accuracy: float


class HeadRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way in which the fusion was trained."""

    method: str
    """``ridge`` or ``logistic``."""
    strength: float
    validation_accuracy: float
    """In 0 to 1."""


class Assembly(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    data: DataRecipe
    backbones: tuple[BackboneRecord, ...]
    heads: tuple[HeadRecord, ...]
    """All that were tried, the one that was kept first."""


def load_assembly(folder: Path) -> Assembly:
    """Read ``assembly.json``.

    Raises:
        InputError: The file cannot be read.
        ManifestError: The format is broken.
    """
    return read_json(folder / FILE_NAME, Assembly, schema=SCHEMA, hint=_HINT)
