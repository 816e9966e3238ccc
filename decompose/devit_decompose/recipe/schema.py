"""The recipe: everything that determines a decomposition, in one TOML file."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from devit_contract.errors import InputError
from devit_decompose.models.model import PRESETS, ModelConfig, Preset, StemLayer, uniform_config

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
        _check("data.classes", self.class_count, 2, 100_000)
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
        _check("layers of stem", len(self.stem), 1, 16)
        _check("depth", self.depth, 1, 1024)
        _check("heads", self.heads, 1, 1024)
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
        _check("shrink.depth", self.depth, 1, 1024)
        _check("shrink.candidates", self.candidates, 1, 1_000_000)
        if not self.budgets or any(not 0 < budget <= 1 for budget in self.budgets):
            raise ValueError(f"shrink.budgets: expected shares above 0 and up to 1, found {self.budgets}")


class AugmentRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How training images are varied; what timm does needs the extra ``timm``."""

    flip: bool = True
    shift_pixels: int = 1
    """Largest shift in each direction, in pixels; uncovered pixels are black."""
    crop: bool = False
    """timm's random resized crop, in place of the shift."""
    policy: str = ""
    """timm's RandAugment, e.g. ``rand-m9-mstd0.5-inc1``."""
    erase: float = 0.0
    """Chance that a rectangle is erased."""
    mixup: float = 0.0
    """Alpha of mixup."""
    cutmix: float = 0.0
    """Alpha of cutmix."""

    @property
    def uses_timm(self) -> bool:
        """Whether more than flips and shifts varies an image."""
        return bool(self.crop or self.policy or self.erase > 0 or self.mixup > 0 or self.cutmix > 0)


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """AdamW with a linear warm-up and a decay; ends when validation has stopped rising."""

    learning_rate: float
    decay_epochs: int
    """The rate falls from its peak to ``final_share`` of it by the end of this epoch, then stays."""
    patience: int
    """After the decay, end when validation has not risen for this many epochs; 0 ends with the decay."""
    max_epochs: int
    decay: Literal["linear", "cosine"] = "linear"
    warmup_epochs: float = 1.0
    final_share: float = 0.02
    weight_decay: float = 0.05
    batch: int = 128
    """Images of one optimiser step in one process, before ``accumulate``."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    clip_norm: float = 0.0
    """Longest gradient; 0 leaves it as it is."""
    drop_path: float = 0.0
    """Chance that the last block's branches are skipped; rises linearly with depth."""
    label_smoothing: float = 0.1
    augment: AugmentRecipe = AugmentRecipe()

    def __post_init__(self) -> None:
        _check("batch", self.batch, 1, 1_000_000)
        _check("accumulate", self.accumulate, 1, 1_000_000)
        _check("max_epochs", self.max_epochs, 1, 1_000_000)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: expected 0 to below 1, found {self.drop_path}")


class AnswerRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a student's answer is compared with: the labels and the teacher's answer."""

    label_weight: float
    """Weight of the cross-entropy to the labels."""
    teacher_weight: float
    """Weight of the distance from the teacher's answer."""
    target: Literal["soft", "hard"] = "soft"
    """``soft``: divergence from the teacher's softened answer; ``hard``: cross-entropy to its first choice."""
    temperature: float = 1.0
    """Both answers' logits are divided by it; ``soft`` only."""

    def __post_init__(self) -> None:
        if self.label_weight < 0 or self.teacher_weight < 0 or not (self.label_weight or self.teacher_weight):
            raise ValueError(
                "answer: expected label_weight and teacher_weight of 0 or more, not both 0, "
                f"found {self.label_weight} and {self.teacher_weight}"
            )
        if self.temperature <= 0:
            raise ValueError(f"answer.temperature: expected more than 0, found {self.temperature}")


class RelationRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Feature matching: how every token relates to every other, in the teacher and in the student."""

    form: Literal["devit", "heads"] = "devit"
    """``devit``: one matrix of all heads side by side, as the authors have it; ``heads``: one for each of ``heads``
    equal parts, rows of length 1 over ``temperature``, so that unequal widths share one."""
    query_weight: float = 0.2
    key_weight: float = 0.1
    value_weight: float = 0.3
    heads: int = 1
    """A, relation heads; ``heads`` only."""
    temperature: float = 0.1
    """``heads`` only."""
    student_block: int | None = None
    """Which block of the student, from 0; by default the middle one, L/2 - 1."""
    teacher_block: int | None = None

    @property
    def is_used(self) -> bool:
        """Whether any of the three has a weight."""
        return any((self.query_weight, self.key_weight, self.value_weight))

    def __post_init__(self) -> None:
        _check("distil.relation.heads", self.heads, 1, 1024)
        if self.temperature <= 0:
            raise ValueError(f"distil.relation.temperature: expected more than 0, found {self.temperature}")


class DistilRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stage: each submodel learns its own classes from labels and teacher."""

    schedule: Schedule
    answer: AnswerRecipe
    relation: RelationRecipe | None = None

    @property
    def used_relation(self) -> RelationRecipe | None:
        """The relation loss, if it has any weight."""
        return self.relation if self.relation is not None and self.relation.is_used else None

    @property
    def asks_teacher(self) -> bool:
        """Whether any term needs the teacher's answer."""
        return bool(self.answer.teacher_weight) or self.used_relation is not None


class MemberRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one submodel learns its own classes, where it differs from the others."""

    answer: AnswerRecipe | None = None
    """In place of ``distil.answer``."""
    augment: AugmentRecipe | None = None
    """In place of ``distil.schedule.augment``."""
    images_share: float = 1.0
    """Share of the training images that it sees, drawn anew for each submodel."""

    def __post_init__(self) -> None:
        if not 0 < self.images_share <= 1:
            raise ValueError(f"members.images_share: expected more than 0 and up to 1, found {self.images_share}")


class EnsembleRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stage: all submodels and the fusion head learn all classes together."""

    schedule: Schedule
    answer: AnswerRecipe
    token_weight: float = 0.0
    """Weight of the squared distance between the teacher's feature and a linear map of all features."""
    failout: float = 0.0
    """Chance that a device is left out of a batch's second answer; at least one is kept."""
    failout_weight: float = 0.0
    """Share of the loss that the second answer has."""
    subset_weight: float = 0.0
    """Share of the loss that smaller subsets of devices have: in each batch a random one of every size, single devices
    included; in place of failout."""

    @property
    def asks_teacher(self) -> bool:
        """Whether any term needs the teacher's answer."""
        return bool(self.answer.teacher_weight or self.token_weight)

    def __post_init__(self) -> None:
        for key in ("failout", "failout_weight", "subset_weight"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"ensemble.{key}: expected 0 to 1, found {getattr(self, key)}")
        if self.failout_weight and self.subset_weight:
            raise ValueError("ensemble: expected failout_weight or subset_weight, found both: set one to 0")


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
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of the multiplications in training; fp16 needs a GPU."""

    def __post_init__(self) -> None:
        classes = self.data.class_count
        _check("submodels", self.submodels, 1, min(MAX_TRAINED, classes))
        _check("threads", self.threads, 1, 1024)
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

    def _augments(self) -> list[AugmentRecipe]:
        schedules = (self.train, self.sub_teacher, self.ensemble.schedule)
        own = [self.distil_of(device).schedule.augment for device in range(self.submodels)]
        return own + [schedule.augment for schedule in schedules if schedule is not None]

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


def _check(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{field}: expected {low} to {high}, found {value}")


def _either(counts: tuple[int, ...]) -> str:
    return " or ".join(str(count) for count in sorted(set(counts))) + " entries"
