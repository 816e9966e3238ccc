"""What each stage trains, as one module from a batch to its loss terms, so that every engine can wrap it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from devit_contract.arrays import Float64Array
from devit_decompose.models.model import Model, QueryKeyValue
from devit_decompose.recipe.training import DistilRecipe, EnsembleRecipe, RelationRecipe
from devit_decompose.training.failout import Failout
from devit_decompose.training.losses import answer_losses, label_loss, relation_losses, token_loss


@dataclass(frozen=True)
class TeacherAnswer:
    """What a teacher says of a batch."""

    logits: Tensor
    """Shape ``(B, K)``."""
    features: Tensor
    """Shape ``(B, feature_dim)``."""
    compared: QueryKeyValue | None = None
    """Query, key and value of the block that the relation loss looks at."""


def answer_of(model: Model, images: Tensor, block: int | None, autocast: AbstractContextManager[None]) -> TeacherAnswer:
    """Answer images without gradients, the blocks under ``autocast``; with the query, key and value of ``block``."""
    with torch.no_grad():
        with autocast:
            features, compared = (model.features(images), None) if block is None else model.observe(images, block)
        features = features.float()
        return TeacherAnswer(torch.stack(model.answers(features)).mean(dim=0), features, compared)


class Objective(nn.Module, ABC):
    """Maps images, labels and the teacher's answer to the terms of the loss, each with its weight in it."""

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor, teacher: TeacherAnswer | None) -> dict[str, Tensor]:
        """Compute the terms."""


class LabelObjective(Objective):
    """Learn from labels alone: the teacher, and each sub-teacher."""

    def __init__(self, model: Model, smoothing: float) -> None:
        """Train ``model`` as a whole."""
        super().__init__()
        self.model = model
        self.smoothing = smoothing

    def forward(self, images: Tensor, labels: Tensor, teacher: TeacherAnswer | None) -> dict[str, Tensor]:
        """Average over the model's heads."""
        answers = self.model.answers(self.model.features(images))
        losses = [label_loss(answer, labels, self.smoothing) for answer in answers]
        return {"labels": torch.stack(losses).mean()}


class DistilObjective(Objective):
    """Sub-task distillation: labels, the teacher's answer, and the relations between tokens inside."""

    def __init__(
        self, student: Model, teacher: Model, recipe: DistilRecipe, class_weights: tuple[float, ...] | None = None
    ) -> None:
        """Train ``student``; of ``teacher`` only the shape is kept."""
        super().__init__()
        self.student = student
        self.recipe = recipe
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None if class_weights is None else torch.tensor(class_weights))
        self._block, self.teacher_block = 0, None
        """Which block of the teacher has to be observed, if any."""
        if recipe.used_relation is not None:
            self._block, self.teacher_block = relation_blocks(recipe.used_relation, student, teacher)
            widths = student.config.head_widths[self._block], teacher.config.head_widths[self.teacher_block]
            self._head_widths = widths

    def forward(self, images: Tensor, labels: Tensor, teacher: TeacherAnswer | None) -> dict[str, Tensor]:
        """Compute the terms of the answer and of the relations."""
        features, compared = self.student.observe(images, self._block)
        smoothing = self.recipe.schedule.label_smoothing
        answers, weights = self.student.answers(features), self.class_weights
        terms = answer_losses(answers, _logits(teacher), labels, self.recipe.answer, smoothing, weights)
        if self.recipe.used_relation is not None:
            if teacher is None or teacher.compared is None:
                raise ValueError("a relation loss needs what the teacher compares")
            depth = len(self.student.blocks)
            terms |= relation_losses(compared, teacher.compared, self.recipe.used_relation, self._head_widths, depth)
        return terms


class EnsembleObjective(Objective):
    """All submodels and the fusion together: the answer whole, the answer without some devices, the teacher's token."""

    def __init__(self, ensemble: Ensemble, teacher_dim: int, recipe: EnsembleRecipe, seed: int) -> None:
        """Train ``ensemble``; ``teacher_dim`` is the length of the teacher's feature."""
        super().__init__()
        self.ensemble = ensemble
        self.recipe = recipe
        self.token_map = nn.Linear(sum(ensemble.dims), teacher_dim) if recipe.token_weight else None
        chance = None if recipe.subset_weight else recipe.failout
        self._share = recipe.subset_weight or recipe.failout_weight
        self.failout = Failout(ensemble.dims, chance, seed) if self._share else None

    def forward(self, images: Tensor, labels: Tensor, teacher: TeacherAnswer | None) -> dict[str, Tensor]:
        """Compute the terms; those of the answers without some devices end in ``(failout)``."""
        features = self.ensemble.features(images)
        with torch.autocast(features.device.type, enabled=False):
            whole = self._answer(features, labels, teacher)
            terms = {name: (1 - self._share) * term for name, term in whole.items()}
            if self.failout is not None:
                partial = [self._answer(filled, labels, teacher) for filled in self.failout(features)]
                for name in whole:
                    mean = torch.stack([each[name] for each in partial]).mean()
                    terms[f"{name} (failout)"] = self._share * mean
            if self.token_map is not None:
                if teacher is None:
                    raise ValueError("a token loss needs the teacher's feature")
                terms["token"] = self.recipe.token_weight * token_loss(self.token_map(features), teacher.features)
        return terms

    def _answer(self, features: Tensor, labels: Tensor, teacher: TeacherAnswer | None) -> dict[str, Tensor]:
        recipe = self.recipe
        answers = self.ensemble.answers(features)
        return answer_losses(answers, _logits(teacher), labels, recipe.answer, recipe.schedule.label_smoothing)


class Ensemble(nn.Module):
    """All submodels without their own heads, and the linear fusion of their features.

    Where submodels have a distillation token, a second fusion reads those tokens and learns from the teacher; the
    answer is the mean of both, which is again linear in all features.
    """

    def __init__(self, submodels: Sequence[Model], classes: int) -> None:
        """Join the submodels; the fusion starts fresh."""
        super().__init__()
        self.submodels = nn.ModuleList(submodels)
        for model in submodels:
            for head in (model.head, model.distillation_head):
                if head is not None:
                    head.requires_grad_(False)
        self.dims = tuple(model.config.feature_dim for model in submodels)
        is_distillation = np.concatenate(
            [np.arange(model.config.feature_dim) >= model.config.width for model in submodels]
        )
        self._columns = [np.flatnonzero(~is_distillation)]
        if is_distillation.any():
            self._columns.append(np.flatnonzero(is_distillation))
        self.fusions = nn.ModuleList(nn.Linear(len(columns), classes) for columns in self._columns)

    def start_at_heads(self) -> None:
        """Start the fusion at the mean of the submodels' own heads; each has a say in the classes that it knows."""
        models = self.models()
        fusions = [fusion for fusion in self.fusions if isinstance(fusion, nn.Linear)]
        heads: list[list[nn.Linear | None]] = [
            [model.head for model in models],
            [model.distillation_head for model in models],
        ]
        with torch.no_grad():
            for fusion, owned in zip(fusions, heads, strict=False):  # the second is of distillation tokens, if any
                fusion.weight.zero_()
                fusion.bias.zero_()
                start = 0
                for model, head in zip(models, owned, strict=True):
                    if head is not None:
                        classes, end = list(model.config.classes), start + head.in_features
                        fusion.weight[classes, start:end] = head.weight / len(models)
                        fusion.bias[classes] += head.bias / len(models)
                        start = end

    def features(self, images: Tensor) -> Tensor:
        """Map images ``(B, H, W, C)`` to all features side by side, ``(B, sum of dims)``."""
        return torch.cat([model.features(images).float() for model in self.models()], dim=1)

    def answers(self, features: Tensor) -> tuple[Tensor, ...]:
        """Map features side by side to the logits ``(B, K)`` of each fusion."""
        if len(self._columns) == 1:
            return (self.fusions[0](features),)
        return tuple(fusion(features[:, columns]) for fusion, columns in zip(self.fusions, self._columns, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, H, W, C)`` to logits ``(B, K)``."""
        answers = self.answers(self.features(images))
        return torch.stack(answers).mean(dim=0)

    def models(self) -> list[Model]:
        """List the submodels."""
        return [module for module in self.submodels if isinstance(module, Model)]

    def linear(self) -> tuple[Float64Array, Float64Array]:
        """Write the fusion as one matrix ``(K, sum of dims)`` and one bias ``(K,)``."""
        fusions = [fusion for fusion in self.fusions if isinstance(fusion, nn.Linear)]
        weight = np.zeros((fusions[0].out_features, sum(self.dims)))
        bias = np.zeros(fusions[0].out_features)
        for fusion, columns in zip(fusions, self._columns, strict=True):
            weight[:, columns] = fusion.weight.detach().double().cpu().numpy() / len(fusions)
            bias += fusion.bias.detach().double().cpu().numpy() / len(fusions)
        return weight, bias


def relation_blocks(recipe: RelationRecipe, student: Model, teacher: Model) -> tuple[int, int]:
    """Choose the blocks of student and teacher whose relations are compared: the middle ones, L/2 - 1."""
    chosen = []
    for block, model in ((recipe.student_block, student), (recipe.teacher_block, teacher)):
        chosen.append(max(0, len(model.blocks) // 2 - 1) if block is None else block)
    return chosen[0], chosen[1]


def _logits(teacher: TeacherAnswer | None) -> Tensor | None:
    return None if teacher is None else teacher.logits
