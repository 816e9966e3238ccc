"""Finds the shape that a model is pruned to: the best of many random shapes of one cost.

Random search, as in DeViT, but each shape is really pruned and scored on validation images. A draw fixes the
proportions of all dimensions. Bisection then finds their common scale, and single steps on the grid bring the cost
into the tolerance, so small budgets need no more draws than large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec
import numpy as np

from devit_contract.arrays import Float64Array, Int64Array, UInt8Array
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress, no_progress
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model, ModelConfig
from devit_decompose.pruning.cost import macs, parameters
from devit_decompose.pruning.importance import Importance, importance
from devit_decompose.pruning.shrink import Shape, allowed_sizes, keep_best, kept_blocks, prune
from devit_decompose.recipe.schema import BudgetOf, Dimension, Recipe, ShrinkRecipe

Score = Callable[[Model], float]

_BATCH = 250
_BISECTIONS = 40
_DRAWS_PER_CANDIDATE = 20
_SPREAD = 0.5
"""Standard deviation of the logarithm of a draw's proportions, among dimensions and again among blocks."""
_RIDGE = 0.01
"""Of the mean variance of a feature's numbers."""


class SearchRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a shape was found."""

    drawn: int
    """Random shapes, including those that missed the budget or were drawn before."""
    tried: int
    """Shapes that were pruned and scored."""
    accuracy: float
    """Score of the kept shape before any training, in 0 to 1."""
    budget_of: BudgetOf
    budget: int
    """Wanted multiply-accumulates of one image without the model's own head, or wanted parameters."""
    cost: int
    """Those of the kept shape."""
    shape: Shape


def search_submodel(
    recipe: Recipe,
    source: Model,
    shrink: ShrinkRecipe,
    device: int,
    images: UInt8Array,
    score: Score,
    progress: Progress,
) -> tuple[Model, SearchRecord]:
    """Prune ``source`` to the submodel of one device, with its share of the teacher's cost; see :func:`search`.

    The importance comes from training images ``(n, H, W, C)``.
    """
    teacher = recipe.teacher.config(recipe.data, tuple(range(recipe.data.class_count)))
    share = shrink.budgets[device if len(shrink.budgets) > 1 else 0]
    budget = round(share * _cost(teacher, shrink.budget_of))
    scores = importance(source, images, shrink.importance)
    return search(source, scores, score, shrink, budget, seed=recipe.seed * 1000 + device, progress=progress)


def search(
    source: Model,
    importance: Importance,
    score: Score,
    shrink: ShrinkRecipe,
    budget: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Model, SearchRecord]:
    """Prune a model to a budget.

    Args:
        source: The trained model.
        importance: Its scores, which decide what is removed when a size is given.
        score: Scores a pruned model, in 0 to 1; see :class:`ReadoutAccuracy`.
        shrink: Its budgets are not read.
        budget: Multiply-accumulates of one image without the model's own head, or parameters.
        seed: Draws the shapes.
        progress: Called after every candidate.

    Raises:
        InputError: The depth does not divide that of the model, or no shape on the grid meets the budget.
    """
    space = _Space(source.config, shrink.depth, shrink.dimensions, shrink.budget_of)
    space.check(budget, shrink.tolerance)
    generator = np.random.default_rng(seed)
    seen: set[Shape] = set()
    best: tuple[float, Shape, Model] | None = None
    drawn = 0
    while len(seen) < shrink.candidates and drawn < shrink.candidates * _DRAWS_PER_CANDIDATE:
        drawn += 1
        choice = space.draw(budget, shrink.tolerance, generator)
        shape = None if choice is None else space.shape(choice)
        if shape is None or shape in seen:
            continue
        seen.add(shape)
        model = prune(source, keep_best(source, importance, shape))
        accuracy = score(model)
        if best is None or accuracy > best[0]:
            best = accuracy, shape, model
        progress("shrink", len(seen), shrink.candidates, f"best before training {best[0]:.1%}")
    if best is None:
        raise InputError(
            f"shrink.tolerance: expected a shape on the grid within {shrink.tolerance:.1%} of {budget:,} "
            f"{shrink.budget_of}, found none in {drawn} draws: raise it, or add to shrink.dimensions"
        )
    accuracy, shape, model = best
    cost = _cost(shape.config(source.config), shrink.budget_of)
    return model, SearchRecord(drawn, len(seen), accuracy, shrink.budget_of, budget, cost, shape)


@dataclass(frozen=True, eq=False)
class ReadoutAccuracy:
    """Scores a model by the accuracy of a new linear head on its features.

    Heavy pruning shifts features, so that the old head fails although training would soon repair it. The head is a
    ridge regression on each half of the images, scored on the other half.
    """

    images: UInt8Array
    """Shape ``(n, H, W, C)``."""
    labels: Int64Array
    """Shape ``(n,)``."""

    def __call__(self, model: Model) -> float:
        """Score a model."""
        model.eval()
        features = run(model.features, self.images, model.positions.device, batch=_BATCH).astype(np.float64)
        # Every second image in the order of labels: both halves hold all classes.
        order = np.argsort(self.labels, kind="stable")
        halves = order[::2], order[1::2]
        right = sum(
            int((_ridge(features[fit], self.labels[fit], features[held]) == self.labels[held]).sum())
            for fit, held in (halves, halves[::-1])
        )
        return right / len(self.labels)


def _ridge(features: Float64Array, labels: Int64Array, others: Float64Array) -> Int64Array:
    """Fit labels linearly to features ``(n, d)`` and predict those of others, ``(m, d)``."""
    targets = np.eye(int(labels.max()) + 1)[labels]
    centre, mean = features.mean(axis=0), targets.mean(axis=0)
    centred = features - centre
    gram = centred.T @ centred
    gram += np.eye(len(gram)) * (_RIDGE * np.trace(gram) / len(gram) + 1e-12)
    weight = np.linalg.solve(gram, centred.T @ (targets - mean))
    answers: Int64Array = ((others - centre) @ weight + mean).argmax(axis=1)
    return answers


def _cost(config: ModelConfig, budget_of: BudgetOf) -> int:
    return macs(config, with_head=False) if budget_of == "macs" else parameters(config)


@dataclass(frozen=True)
class _Axis:
    """One size that can be chosen: that of a dimension, in one block or stem layer."""

    dimension: Dimension
    sizes: tuple[int, ...]


class _Space:
    """All shapes on the grid; a choice is one position in the sizes of each axis."""

    def __init__(self, config: ModelConfig, depth: int, dimensions: Collection[Dimension], budget_of: BudgetOf) -> None:
        blocks = kept_blocks(len(config.heads), depth)
        owns: dict[Dimension, list[int]] = {
            "width": [config.width],
            "heads": [config.heads[block] for block in blocks],
            "head_width": [config.head_widths[block] for block in blocks],
            "neurons": [config.neurons[block] for block in blocks],
            "stem": [layer.width for layer in config.stem[:-1]],
        }
        self._config = config
        self._depth = depth
        self._budget_of: BudgetOf = budget_of
        self._axes = [
            _Axis(dimension, allowed_sizes(own, dimension) if dimension in dimensions else (own,))
            for dimension, sizes in owns.items()
            for own in sizes
        ]

    def shape(self, choice: list[int]) -> Shape:
        """Spell a choice out."""
        sizes: dict[Dimension, list[int]] = {"width": [], "heads": [], "head_width": [], "neurons": [], "stem": []}
        for axis, position in zip(self._axes, choice, strict=True):
            sizes[axis.dimension].append(axis.sizes[position])
        return Shape(
            depth=self._depth,
            width=sizes["width"][0],
            heads=tuple(sizes["heads"]),
            head_widths=tuple(sizes["head_width"]),
            neurons=tuple(sizes["neurons"]),
            stem=tuple(sizes["stem"]),
        )

    def cost(self, choice: list[int]) -> int:
        """Count what a choice costs."""
        return _cost(self.shape(choice).config(self._config), self._budget_of)

    def check(self, budget: int, tolerance: float) -> None:
        """Refuse a budget that no shape on the grid can have."""
        smallest = self.cost([0] * len(self._axes))
        largest = self.cost([len(axis.sizes) - 1 for axis in self._axes])
        wanted = f"{budget:,} {self._budget_of} at depth {self._depth}"
        if budget * (1 + tolerance) < smallest:
            raise InputError(
                f"shrink.budgets: expected at least {smallest:,}, the smallest model on the grid, found {wanted}: "
                "raise it, lower shrink.depth, or add to shrink.dimensions"
            )
        if budget * (1 - tolerance) > largest:
            raise InputError(
                f"shrink.budgets: expected at most {largest:,}, the model with its depth cut alone, found {wanted}: "
                "lower it, or raise shrink.depth"
            )

    def draw(self, budget: int, tolerance: float, generator: np.random.Generator) -> list[int] | None:
        """Draw a choice within the tolerance, or None if the grid is too coarse around the draw."""
        of_dimension = {axis.dimension: generator.normal() for axis in self._axes}
        noise = [of_dimension[axis.dimension] + generator.normal() for axis in self._axes]
        proportions = np.exp(_SPREAD * np.array(noise))
        low, high = 0.0, 1.0 / proportions.min()
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.cost(self._scaled(proportions, middle)) <= budget else (low, middle)
        choice = self._scaled(proportions, low)
        gap = abs(self.cost(choice) - budget)
        while gap > tolerance * budget:
            closer = [
                (step, distance) for step in self._steps(choice) if (distance := abs(self.cost(step) - budget)) < gap
            ]
            if not closer:
                return None
            choice, gap = closer[generator.integers(len(closer))]
        return choice

    def _scaled(self, proportions: Float64Array, scale: float) -> list[int]:
        """Choose the largest sizes up to a share of each axis' own."""
        limits = [share * axis.sizes[-1] for axis, share in zip(self._axes, proportions * scale, strict=True)]
        return [
            max(0, int(np.searchsorted(axis.sizes, limit, side="right")) - 1)
            for axis, limit in zip(self._axes, limits, strict=True)
        ]

    def _steps(self, choice: list[int]) -> list[list[int]]:
        """List the choices that are one step away."""
        return [
            [*choice[:place], position, *choice[place + 1 :]]
            for place, axis in enumerate(self._axes)
            for position in (choice[place] - 1, choice[place] + 1)
            if 0 <= position < len(axis.sizes)
        ]
