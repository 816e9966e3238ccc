"""``decomposition.json``: the content of a finished models folder, its making and its accuracy."""

from __future__ import annotations

from pathlib import Path

import msgspec

from devit_contract.artefacts.files import read_json, sha256_of_file
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import ManifestError
from devit_decompose.models.model import ModelConfig
from devit_decompose.pruning.search import SearchRecord
from devit_decompose.recipe.schema import Recipe

SCHEMA = 2
FILE_NAME = "decomposition.json"
_HINT = "make the models again with devit decompose"


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the folder, by what it is for."""

    role: str
    """``teacher``, ``submodel``, ``fusion`` or ``samples``."""
    name: str
    sha256: str
    device: int | None = None
    """Which submodel; absent where the role has only one file."""


class ModelRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model's shape and cost."""

    config: ModelConfig
    macs: int
    """Multiply-accumulates of one image, without the model's own head for a submodel."""
    parameters: int


class StageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one training stage went."""

    name: str
    epochs: int
    best_epoch: int
    validation_accuracy: float
    """Of the epoch that was kept, in 0 to 1."""


class SubsetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How good the answer of one subset of devices is."""

    mask: int
    """Bit i is set where device i is present."""
    validation_accuracy: float
    """With the missing features predicted from those present (conditional mean), in 0 to 1; so is the next."""
    test_accuracy: float
    test_accuracy_with_zeros: float
    """With zeros for missing features, for comparison; the node does not do this."""
    test_accuracy_with_mean: float
    """With their mean over the training part, for comparison."""


class DataRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which images were used."""

    name: str
    training_images: int
    validation_images: int
    test_images: int
    training_sha256: str
    validation_sha256: str
    test_sha256: str


class Decomposition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    name: str
    code_version: str
    recipe: Recipe | None
    """Absent where trained models were assembled."""
    data: DataRecord
    preprocess: Preprocess
    """How a picture becomes the models' input."""
    class_names: tuple[str, ...]
    """In the order of the labels."""
    class_subsets: tuple[tuple[int, ...], ...]
    """Global labels each submodel was first trained on."""
    teacher: ModelRecord | None
    """The undivided model; absent where trained models were assembled."""
    submodels: tuple[ModelRecord, ...]
    stages: tuple[StageRecord, ...]
    searches: tuple[SearchRecord, ...]
    """How each submodel was pruned; empty where they started fresh."""
    teacher_validation_accuracy: float | None
    teacher_test_accuracy: float | None
    subsets: tuple[SubsetRecord, ...]
    """One entry for each of the 2^N - 1 subsets, by rising mask."""
    files: tuple[FileRecord, ...]

    def file(self, role: str, device: int | None = None) -> FileRecord:
        """Find the file of a role.

        Raises:
            ManifestError: There is none.
        """
        for record in self.files:
            if record.role == role and record.device == device:
                return record
        raise ManifestError(f"{FILE_NAME}: expected a file of role {role}, device {device}, found none: {_HINT}")


def load_decomposition(folder: Path) -> Decomposition:
    """Read ``decomposition.json`` and check the digest of every file that it names.

    Raises:
        InputError: A file cannot be read.
        ManifestError: The format or a digest is broken.
    """
    decomposition = read_json(folder / FILE_NAME, Decomposition, schema=SCHEMA, hint=_HINT)
    for record in decomposition.files:
        found = sha256_of_file(folder / record.name)
        if found != record.sha256:
            raise ManifestError(
                f"{folder / record.name}: expected sha256 {record.sha256[:12]}, found {found[:12]}: {_HINT}"
            )
    return decomposition
