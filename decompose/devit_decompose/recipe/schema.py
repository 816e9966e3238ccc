"""The recipe: everything that determines a decomposition, in one TOML file."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from devit_contract.choices import Views
from devit_contract.errors import InputError
from devit_contract.views import View, spread
from devit_decompose.models.model import PRESETS, ModelConfig, Preset, StemLayer, uniform_config
from devit_decompose.recipe.training import (
    AugmentRecipe,
    DistilRecipe,
    EnsembleRecipe,
    MemberRecipe,
    Schedule,
    check_range,
)

SCHEMA = 2
HINT = "see examples/fashion-mnist.toml"
MAX_TRAINED = 10
"""Submodels: every subset of them, 2^N - 1, is measured at the end."""

BudgetOf = Literal["macs", "parameters"]
Dimension = Literal["heads", "head_width", "width", "neurons", "stem"]
Method = Literal["hsic", "magnitude"]
"""How the importance of a model's parts is found."""


class DataRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the images come from and how they are split."""

    name: str
    folder: str
    """Folder of the data set; for ``idx`` and ``pairs`` the one with the four IDX files (plain or .gz)."""
    size: tuple[int, int]
    """Height and width in pixels that pictures are brought to; IDX images must have it."""
    classes: tuple[str, ...] | int
    """Their names in the order of the labels; or their number, and the names are those of the data set."""
    mean: tuple[float, ...]
    """Per colour, of training pixels in 0 to 1."""
    std: tuple[float, ...]
    validation_images: int
    """Taken from the training part, the same number of each class."""
    sample_images: int
    """Validation images kept with the models for the export's golden set, the same number of each class."""
    source: Literal["idx", "pairs", "folder", "imagenet", "cifar100", "flowers102", "stanford_cars"] = "idx"
    """``pairs``: two IDX images side by side, class 10 a + b; ``folder``: train/ and test/ (or val/) with one folder
    for each class; the others are torchvision's."""
    resize_to: int = 0
    """Shorter side in pixels before the centre crop; 0 resizes straight to ``size``."""
    split_seed: int = 1
    """Draws the validation part; apart from the recipe's seed, so that no other seed sees validation images."""
    training_images: int = 0
    """How many of those left for training are used, the same number of each class; 0 uses all. For quick trials."""
    workers: int = 0
    """Processes that decode pictures during training."""

    def __post_init__(self) -> None:
        check_range("data.classes", self.class_count, 2, 100_000)
        if len(self.mean) != len(self.std):
            raise ValueError(f"data.mean and data.std: expected as many, found {len(self.mean)} and {len(self.std)}")

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Height, width, colours."""
        return (*self.size, len(self.mean))

    @property
    def class_count(self) -> int:
        """K."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)


class ShapeRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of a model whose blocks are all alike: a published one, or spelled out."""

    preset: str = ""
    """E.g. ``DeiT-Ti`` or ``CCT-14/7x2``; then only ``weights`` may be set too."""
    backbone: Literal["vit", "deit", "cct"] = "cct"
    stem: tuple[StemLayer, ...] = ()
    depth: int = 0
    heads: int = 0
    head_width: int = 0
    """Numbers per head; 0 shares the width among the heads."""
    mlp_ratio: float = 0.0
    weights: str = ""
    """Trained weights to start from: ``timm:NAME`` or a file of this project's, timm's or the public CCT's."""

    def __post_init__(self) -> None:
        if self.preset:
            if self.preset not in PRESETS:
                raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {self.preset!r}")
            if self.stem or self.depth or self.heads or self.head_width or self.mlp_ratio:
                raise ValueError("preset: expected no stem, depth, heads, head_width or mlp_ratio beside it")
            return
        check_range("layers of stem", len(self.stem), 1, 16)
        check_range("depth", self.depth, 1, 1024)
        check_range("heads", self.heads, 1, 1024)
        if self.head_width == 0 and self.stem[-1].width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.stem[-1].width}, found {self.heads}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio: expected more than 0, found {self.mlp_ratio}")

    def config(self, data: DataRecipe, classes: tuple[int, ...]) -> ModelConfig:
        """Spell the shape out for the given classes.

        Raises:
            InputError: The images do not fit it.
        """
        if self.preset:
            shape: dict[str, Any] = PRESETS[self.preset]._asdict()
        else:
            shape = {name: getattr(self, name) for name in (*Preset._fields, "head_width")}
        try:
            return uniform_config(image_size=data.image_size, mean=data.mean, std=data.std, classes=classes, **shape)
        except ValueError as err:
            raise InputError(f"teacher or student: {err}: {HINT}") from err


class PartitionRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which classes each submodel is first trained on."""

    method: Literal["random", "balanced", "confusion", "none", "committee", "specialists"] = "random"
    """``none``: every submodel is first trained on all classes; ``committee``: so they are, and every subset of them is
    trained to answer; ``specialists``: the first ``generalists`` know all classes, the others a group each of those
    that the teacher confuses."""
    sizes: tuple[int, ...] = ()
    """Classes for each submodel, or for each specialist; empty: as equal as possible."""
    generalists: int = 0
    """Submodels that know all classes; ``specialists`` only."""

    @property
    def has_generalists(self) -> bool:
        """Whether some submodel is to answer alone, so that the fusion starts at the submodels' own heads."""
        return self.method in ("committee", "specialists")


class ViewRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each device sees of a scene, cut out of the image of the whole scene."""

    share: float = 1.0
    """Side of a device's window, as a share of the scene's; the windows stand in rows and columns and cover it."""
    turn_degrees: float = 0.0
    """How far the last device's camera is turned; the first one's is turned as far the other way."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"view.share: expected more than 0 and up to 1, found {self.share}")
        if not -180 <= self.turn_degrees <= 180:
            raise ValueError(f"view.turn_degrees: expected -180 to 180, found {self.turn_degrees}")


class ShrinkRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Submodels pruned from a trained model, in place of fresh ones."""

    depth: int
    """Blocks that are kept; divides those of the model that is pruned."""
    budgets: tuple[float, ...]
    """Share of the teacher's cost, one number for all submodels or one for each."""
    budget_of: BudgetOf = "macs"
    source: Literal["teacher", "student"] = "teacher"
    """What is pruned: the (sub-)teacher, or the student's shape with its weights."""
    importance: Method = "hsic"
    dimensions: tuple[Dimension, ...] = get_args(Dimension)
    candidates: int = 100
    tolerance: float = 0.02
    """Of the budget, either way."""
    images: int = 512
    """Training images for the importance, and as many validation images for each candidate."""

    def __post_init__(self) -> None:
        check_range("shrink.depth", self.depth, 1, 1024)
        check_range("shrink.candidates", self.candidates, 1, 1_000_000)
        if not self.budgets or any(not 0 < budget <= 1 for budget in self.budgets):
            raise ValueError(f"shrink.budgets: expected shares above 0 and up to 1, found {self.budgets}")


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
    teacher: ShapeRecipe
    distil: DistilRecipe
    ensemble: EnsembleRecipe
    students: tuple[ShapeRecipe, ...] = ()
    """One shape for all submodels, or one for each; none where they are pruned from the teacher."""
    members: tuple[MemberRecipe, ...] = ()
    """One for each submodel, or none where all learn alike."""
    train: Schedule | None = None
    """Stage: the teacher learns all classes; absent where its weights are taken as they are."""
    sub_teacher: Schedule | None = None
    """Stage: a copy of the teacher learns one subset of classes, and teaches it."""
    partition: PartitionRecipe = PartitionRecipe()
    shrink: ShrinkRecipe | None = None
    views: Views = "same"
    """``own``: each device has a camera of its own, and sees what ``view`` says; the teacher sees the whole scene."""
    view: ViewRecipe = ViewRecipe()
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of the multiplications in training; fp16 needs a GPU."""

    def __post_init__(self) -> None:
        classes = self.data.class_count
        check_range("submodels", self.submodels, 1, min(MAX_TRAINED, classes))
        check_range("threads", self.threads, 1, 1024)
        is_pruned_teacher = self.shrink is not None and self.shrink.source == "teacher"
        allowed = (0,) if is_pruned_teacher else (1, self.submodels)
        if len(self.students) not in allowed:
            raise ValueError(f"students: expected {_either(allowed)}, found {len(self.students)}")
        if self.shrink is not None and len(self.shrink.budgets) not in (1, self.submodels):
            raise ValueError(
                f"shrink.budgets: expected {_either((1, self.submodels))}, found {len(self.shrink.budgets)}"
            )
        if len(self.members) not in (0, self.submodels):
            raise ValueError(f"members: expected {_either((0, self.submodels))}, found {len(self.members)}")
        self._check_partition()
        self._check_focus()
        self._check_views()
        if self.train is None and not self.teacher.weights:
            raise ValueError("train: expected this table, or teacher.weights, found neither")
        if self.data.source == "pairs" and any(augment.flip for augment in self._augments()):
            raise ValueError(
                "augment.flip: expected false for pairs, where a mirror image has another label, found true"
            )

    @property
    def uses_timm(self) -> bool:
        """Whether any part of it comes from timm or torchvision."""
        shapes = (self.teacher, *self.students)
        return (
            self.data.source in ("cifar100", "flowers102", "stanford_cars")
            or any(shape.weights.startswith("timm:") for shape in shapes)
            or any(augment.uses_timm for augment in self._augments())
        )

    def student(self, device: int) -> ShapeRecipe:
        """Shape of one submodel before any pruning."""
        return self.students[device if len(self.students) > 1 else 0]

    def distil_of(self, device: int) -> DistilRecipe:
        """How one submodel learns its own classes."""
        if not self.members:
            return self.distil
        member, schedule = self.members[device], self.distil.schedule
        return msgspec.structs.replace(
            self.distil,
            answer=member.answer or self.distil.answer,
            schedule=msgspec.structs.replace(schedule, augment=member.augment or schedule.augment),
        )

    def class_weights(self, device: int) -> tuple[float, ...] | None:
        """Weight of each class in one submodel's loss of the labels; None where all are alike."""
        if not self.members or not self.members[device].focus:
            return None
        member = self.members[device]
        return tuple(member.focus_weight if label in member.focus else 1.0 for label in range(self.data.class_count))

    def view_of(self, device: int) -> View | None:
        """What one device sees of a scene; None for the whole image."""
        return None if self.views == "same" else self._views()[device]

    def _views(self) -> tuple[View, ...]:
        share, turn = self.view.share, self.view.turn_degrees
        return spread(self.submodels, *self.data.size, share=share, turn_degrees=turn)

    def _check_views(self) -> None:
        if (self.views == "own") != (self.view != ViewRecipe()):
            raise ValueError(
                'views: expected "own" together with view.share below 1 or view.turn_degrees, '
                f'found views = "{self.views}" and {self.view}'
            )
        if self.views == "own":
            self._views()  # refuses gaps
            if self.distil.used_relation is not None:
                raise ValueError(
                    'distil.relation: expected none with views = "own", where no token of a submodel shows what the '
                    "same token of the teacher does: set its weights to 0"
                )

    def _augments(self) -> list[AugmentRecipe]:
        schedules = (self.train, self.sub_teacher, self.ensemble.schedule)
        own = [self.distil_of(device).schedule.augment for device in range(self.submodels)]
        return own + [schedule.augment for schedule in schedules if schedule is not None]

    def _check_focus(self) -> None:
        for device, member in enumerate(self.members):
            is_known = all(0 <= label < self.data.class_count for label in member.focus)
            knows_all = self.partition.method in ("none", "committee") or device < self.partition.generalists
            if member.focus and not (is_known and knows_all):
                raise ValueError(
                    f"members.focus: expected labels from 0 to {self.data.class_count - 1}, for submodels that know "
                    f"all classes, found {member.focus} for submodel {device}"
                )

    def _check_partition(self) -> None:
        method, sizes, generalists = self.partition.method, self.partition.sizes, self.partition.generalists
        parts, classes = self.submodels - generalists, self.data.class_count
        if method == "specialists" and not 0 < generalists < self.submodels:
            raise ValueError(f"partition.generalists: expected 1 to {self.submodels - 1}, found {generalists}")
        if method != "specialists" and generalists:
            raise ValueError(f'partition.generalists: expected 0 for method "{method}", found {generalists}')
        if method in ("none", "committee") and sizes:
            raise ValueError(f'partition.sizes: expected none for method "{method}", which gives all classes to all')
        if sizes and (len(sizes) != parts or sum(sizes) != classes or min(sizes) < 1):
            raise ValueError(
                f"partition.sizes: expected {parts} numbers from 1 that sum up to {classes} classes, found {sizes}"
            )
        if self.ensemble.subset_weight and self.submodels == 1:
            raise ValueError("ensemble.subset_weight: expected 0 for one submodel, which has no smaller subset")
        if method == "committee" and not self.ensemble.subset_weight:
            raise ValueError("ensemble.subset_weight: expected more than 0 for a committee, whose subsets all answer")


def _either(counts: tuple[int, ...]) -> str:
    return " or ".join(str(count) for count in sorted(set(counts))) + " entries"
