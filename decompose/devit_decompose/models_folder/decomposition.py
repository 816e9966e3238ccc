"""``decomposition.json``: the content of a finished models folder, its making and its accuracy."""

from __future__ import annotations

from pathlib import Path

import msgspec

from devit_contract.artefacts.file_list import FileEntry, check_listing, find_entry
from devit_contract.artefacts.files import read_json
from devit_contract.artefacts.manifest import Preprocess, SubsetAccuracy
from devit_contract.choices import Role, Views
from devit_contract.views import View
from devit_decompose.models.model import ModelConfig
from devit_decompose.pruning.search import SearchRecord
from devit_decompose.recipe.schema import Recipe

SCHEMA = 2
FILE_NAME = "decomposition.json"
_HINT = "make the models again with devit decompose"


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


class SubsetRecord(SubsetAccuracy, frozen=True, forbid_unknown_fields=True):
    """How good the answer of one subset of devices is, also with the missing features filled in two simpler ways."""

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
    """The baseline model; absent where trained models were assembled."""
    submodels: tuple[ModelRecord, ...]
    stages: tuple[StageRecord, ...]
    searches: tuple[SearchRecord, ...]
    """How each submodel was pruned; empty where they started fresh."""
    teacher_validation_accuracy: float | None
    teacher_test_accuracy: float | None
    subsets: tuple[SubsetRecord, ...]
    """One entry for each of the 2^N - 1 subsets, by rising mask."""
    files: tuple[FileEntry, ...]

    @property
    def views(self) -> Views:
        """Whether each device has its own view of a scene."""
        return "same" if self.recipe is None else self.recipe.views

    def view_of(self, device: int | None) -> View | None:
        """What a device sees of a scene; ``None`` for the whole image, as the teacher (``None``) does."""
        return None if self.recipe is None or device is None else self.recipe.view_of(device)

    def file(self, role: Role, device: int | None = None) -> FileEntry:
        """Find the file of a role.

        Raises:
            ManifestError: There is none.
        """
        return find_entry(self.files, role, device, None, list_name=FILE_NAME, hint=_HINT)


def load_decomposition(folder: Path) -> Decomposition:
    """Read ``decomposition.json`` and check the digest of every file that it names.

    Raises:
        InputError: A file cannot be read.
        ManifestError: The format or a digest is broken.
    """
    decomposition = read_json(folder / FILE_NAME, Decomposition, schema=SCHEMA, hint=_HINT)
    check_listing(folder, decomposition.files, _HINT, with_digests=True)
    return decomposition
