"""Finds the shape that a model is pruned to: random shapes of one cost, of which the best is kept.

Plain random search, as DeViT's, but pruned for real and judged on validation images. A draw fixes the proportions of
all dimensions; their common scale is then found by bisection, and single steps on the grid bring the cost into the
tolerance, so that small budgets need no more draws than large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.errors import InputError
from devit_contract.service.progress import Progress, no_progress
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model, ModelConfig
from devit_decompose.pruning.cost import macs, parameters
from devit_decompose.pruning.importance import Importance, importance
from devit_decompose.pruning.shrink import Dimension, Shape, allowed_sizes, keep_best, kept_blocks, prune
from devit_decompose.recipe.schema import Recipe, ShrinkRecipe

BudgetOf = Literal["macs", "parameters"]
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
    """Random shapes, those that missed the budget or came twice included."""
    tried: int
    """Shapes that were pruned and scored."""
    accuracy: float
    """Score of the kept shape before any training, in 0 to 1."""
    budget_of: BudgetOf
    budget: int
    """Multiply-accumulates of one image without the model's own head, or parameters: wanted."""
    cost: int
    """The same: of the kept shape."""
    shape: Shape


def search_submodel(
    recipe: Recipe,
    source: Model,
    shrink: ShrinkRecipe,
    device: int,
    images: npt.NDArray[np.uint8],
    score: Score,
    progress: Progress,
) -> tuple[Model, SearchRecord]:
    """Find the submodel of one device by pruning ``source`` to its share of the teacher's cost.

    Args:
        recipe: Tells the teacher's cost.
        source: What is pruned.
        shrink: How.
        device: Whose submodel it is.
        images: Training images ``(n, H, W, C)`` for the importance.
        score: Judges a candidate, in 0 to 1.
        progress: Told of every candidate.
    """
    whole = recipe.teacher.config(recipe.data, tuple(range(recipe.data.class_count)))
    share = shrink.budgets[device if len(shrink.budgets) > 1 else 0]
    cost = macs(whole, with_head=False) if shrink.budget_of == "macs" else parameters(whole)
    return search(
        source,
        importance(source, images, shrink.importance),
        score,
        depth=shrink.depth,
        budget=round(share * cost),
        budget_of=shrink.budget_of,
        dimensions=shrink.dimensions,
        candidates=shrink.candidates,
        tolerance=shrink.tolerance,
        seed=recipe.seed * 1000 + device,
        progress=progress,
    )


def search(
    source: Model,
    importance: Importance,
    score: Score,
    *,
    depth: int,
    budget: int,
    budget_of: BudgetOf = "macs",
    dimensions: Collection[Dimension] = ("heads", "head_width", "width", "neurons", "stem"),
    candidates: int = 100,
    tolerance: float = 0.02,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Model, SearchRecord]:
    """Prune a model to a budget.

    Args:
        source: The trained model.
        importance: Its scores, which decide what goes when a size is given.
        score: Judges a pruned model, in 0 to 1; see :class:`ReadoutAccuracy`.
        depth: Blocks that are kept.
        budget: Multiply-accumulates of one image without the model's own head, or parameters.
        budget_of: Which of them.
        dimensions: What is pruned beside the depth.
        candidates: Shapes that are tried; fewer where the grid has fewer.
        tolerance: Share of the budget by which a shape may miss it, either way.
        seed: Draws the shapes.
        progress: Is told of every candidate.

    Raises:
        InputError: The depth does not divide that of the model, or no shape on the grid meets the budget.
    """
    space = _Space(source.config, depth, dimensions, budget_of)
    space.check(budget, tolerance)
    generator = np.random.default_rng(seed)
    seen: set[Shape] = set()
    best: tuple[float, Shape, Model] | None = None
    drawn = 0
    while len(seen) < candidates and drawn < candidates * _DRAWS_PER_CANDIDATE:
        drawn += 1
        choice = space.draw(budget, tolerance, generator)
        shape = None if choice is None else space.shape(choice)
        if shape is None or shape in seen:
            continue
        seen.add(shape)
        model = prune(source, keep_best(source, importance, shape))
        accuracy = score(model)
        if best is None or accuracy > best[0]:
            best = accuracy, shape, model
        progress("shrink", len(seen), candidates, f"best before training {best[0]:.1%}")
    if best is None:
        raise InputError(
            f"shrink.tolerance: expected a shape on the grid within {tolerance:.1%} of {budget:,} {budget_of}, "
            f"found none in {drawn} draws: raise it, or add to shrink.dimensions"
        )
    accuracy, shape, model = best
    cost = _cost(shape.config(source.config), budget_of)
    return model, SearchRecord(drawn, len(seen), accuracy, budget_of, budget, cost, shape)


@dataclass(frozen=True, eq=False)
class ReadoutAccuracy:
    """Scores a model by what its feature still tells: the accuracy of a linear readout that is fitted afresh.

    Heavy pruning shifts features away from what the old head reads, though little is lost that training would not
    bring back. Ridge regression on either half of the images, scored on the other.
    """

    images: npt.NDArray[np.uint8]
    """Shape ``(n, H, W, C)``."""
    labels: npt.NDArray[np.int64]
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


def _ridge(
    features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], asked: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Fit labels linearly to features ``(n, d)`` and answer for others ``(m, d)``."""
    targets = np.eye(int(labels.max()) + 1)[labels]
    centre, mean = features.mean(axis=0), targets.mean(axis=0)
    centred = features - centre
    gram = centred.T @ centred
    gram += np.eye(len(gram)) * (_RIDGE * np.trace(gram) / len(gram) + 1e-12)
    weight = np.linalg.solve(gram, centred.T @ (targets - mean))
    answers: npt.NDArray[np.int64] = ((asked - centre) @ weight + mean).argmax(axis=1)
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
        """Refuse a budget outside of what the grid has.

        Raises:
            InputError: It is too small or too large.
        """
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
        """Draw a choice within the tolerance, or nothing where the grid is too coarse around the draw."""
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

    def _scaled(self, proportions: npt.NDArray[np.float64], scale: float) -> list[int]:
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
