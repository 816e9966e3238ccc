"""The recipe: one TOML file that says how a decomposition is made, and nothing else decides it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from devit_contract.errors import InputError
from devit_contract.files import read_toml
from devit_decompose.model import ModelConfig, StemLayer, cct_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1
_HINT = "see examples/fashion-mnist.toml"


class DataRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the images come from and how they are split."""

    name: str
    folder: str
    """Folder with the four IDX files (plain or .gz)."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per colour, of training pixels in 0 to 1."""
    std: tuple[float, ...]
    validation_images: int
    """Taken from the training file, the same number of each class."""
    sample_images: int
    """Validation images kept with the models for the export's golden set, the same number of each class."""

    def __post_init__(self) -> None:
        """Refuse a data set without classes, and statistics that do not fit together."""
        _check("data.classes", len(self.classes), 2, 100_000)
        if len(self.mean) != len(self.std):
            raise ValueError(f"data.mean and data.std: expected as many, found {len(self.mean)} and {len(self.std)}")


class ModelRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of a CCT whose blocks are all alike."""

    stem: tuple[StemLayer, ...]
    depth: int
    heads: int
    mlp_ratio: float

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be built."""
        _check("layers of stem", len(self.stem), 1, 16)
        _check("depth", self.depth, 1, 1024)
        _check("heads", self.heads, 1, 1024)
        if self.stem[-1].width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.stem[-1].width}, found {self.heads}")

    def config(self, data: DataRecipe, image_size: tuple[int, int, int], classes: tuple[int, ...]) -> ModelConfig:
        """Spell the shape out for the given classes."""
        return cct_config(
            image_size=image_size,
            mean=data.mean,
            std=data.std,
            stem=self.stem,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            classes=classes,
        )


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """AdamW with a linear warm-up and a linear decay; ends when validation has stopped rising."""

    learning_rate: float
    decay_epochs: int
    """The rate falls from its peak to ``final_share`` of it by the end of this epoch, then stays."""
    patience: int
    """After the decay, end when validation has not risen for this many epochs; 0 ends with the decay."""
    max_epochs: int
    warmup_epochs: float = 1.0
    final_share: float = 0.02
    weight_decay: float = 0.05
    batch: int = 128
    label_smoothing: float = 0.1
    flip: bool = True
    shift_pixels: int = 1

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot run."""
        _check("batch", self.batch, 1, 1_000_000)
        _check("max_epochs", self.max_epochs, 1, 1_000_000)


class DistilRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stage: each submodel learns its own classes from the teacher."""

    schedule: Schedule
    label_weight: float
    """Weight of the cross-entropy to the labels."""
    teacher_weight: float
    """Weight of the divergence from the teacher's softened answer, restricted to the subset."""
    temperature: float


class EnsembleRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stage: all submodels and the fusion head learn all classes together."""

    schedule: Schedule
    label_weight: float
    teacher_weight: float
    temperature: float
    failout: float
    """Chance that a device is left out of a batch's second answer; at least one is kept."""
    failout_weight: float
    """Share of the loss that the second answer has."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    name: str
    seed: int
    submodels: int
    """N, one per device."""
    threads: int
    """Threads of torch; the result depends on it only by rounding."""
    data: DataRecipe
    teacher: ModelRecipe
    student: ModelRecipe
    train: Schedule
    """Stage: the teacher learns all classes."""
    distil: DistilRecipe
    ensemble: EnsembleRecipe

    def __post_init__(self) -> None:
        """Refuse more submodels than classes."""
        _check("submodels", self.submodels, 1, min(10, len(self.data.classes)))
        _check("threads", self.threads, 1, 1024)


def load_recipe(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` changes, e.g. ``train.decay_epochs=2``.

    Raises:
        InputError: The file cannot be read or a change is not ``key=value`` with a TOML value.
        ManifestError: The file or a changed field breaks the format.
    """
    recipe = read_toml(path, Recipe, schema=SCHEMA, hint=_HINT)
    if not changes:
        return recipe
    raw: dict[str, Any] = msgspec.to_builtins(recipe)
    for change in changes:
        _apply(raw, change)
    try:
        return msgspec.convert(raw, Recipe)
    except msgspec.ValidationError as err:
        raise InputError(f"--set {' '.join(changes)}: {err}: {_HINT}") from err


def _check(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{field}: expected {low} to {high}, found {value}")


def _apply(raw: dict[str, Any], change: str) -> None:
    key, separator, text = change.partition("=")
    *folders, name = key.strip().split(".")
    place: Any = raw
    for folder in folders:
        place = place.get(folder) if isinstance(place, dict) else None
    if not separator or not isinstance(place, dict) or name not in place:
        raise InputError(f"--set {change}: expected key=value with a key of the recipe, e.g. train.decay_epochs=2")
    try:
        place[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as err:
        raise InputError(f"--set {change}: expected a TOML value (text in quotes), found {text!r}") from err
