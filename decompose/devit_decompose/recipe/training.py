"""The part of the recipe that says how each stage trains: schedules, augmentation, and what is compared."""

from __future__ import annotations

from typing import Literal

import msgspec


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
        check_range("batch", self.batch, 1, 1_000_000)
        check_range("accumulate", self.accumulate, 1, 1_000_000)
        check_range("max_epochs", self.max_epochs, 1, 1_000_000)
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
        check_range("distil.relation.heads", self.heads, 1, 1024)
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
    focus: tuple[int, ...] = ()
    """Labels whose images count ``focus_weight`` times in the loss of the labels."""
    focus_weight: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.images_share <= 1:
            raise ValueError(f"members.images_share: expected more than 0 and up to 1, found {self.images_share}")
        if self.focus_weight <= 0:
            raise ValueError(f"members.focus_weight: expected more than 0, found {self.focus_weight}")


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


def check_range(field: str, value: int, low: int, high: int) -> None:
    """Raise ValueError where a number of the recipe is outside its range."""
    if not low <= value <= high:
        raise ValueError(f"{field}: expected {low} to {high}, found {value}")
