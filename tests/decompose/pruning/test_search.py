from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.errors import InputError
from devit_contract.service.progress import Progress, no_progress
from devit_decompose.models.inference import accuracy, run
from devit_decompose.models.model import PRESETS, Model, ModelConfig, StemLayer, uniform_config
from devit_decompose.pruning.cost import macs, parameters
from devit_decompose.pruning.importance import Importance, importance
from devit_decompose.pruning.search import ReadoutAccuracy, SearchRecord, _Space, search
from devit_decompose.pruning.shrink import allowed_sizes
from devit_decompose.recipe.schema import Dimension, ShrinkRecipe

ALL: tuple[Dimension, ...] = ("heads", "head_width", "width", "neurons", "stem")


def config(backbone: str = "cct") -> ModelConfig:
    cct = (StemLayer(32), StemLayer(64, stride=4))
    return uniform_config(
        backbone=backbone,
        image_size=(16, 16, 1),
        mean=(0.5,),
        std=(0.3,),
        stem=cct if backbone == "cct" else (StemLayer(64, 4, 4, batch_norm=False),),
        depth=4,
        heads=2,
        mlp_ratio=2.0,
        classes=(0, 1, 2, 3),
    )


@pytest.fixture(scope="module")
def source() -> Model:
    torch.manual_seed(0)
    return Model(config()).eval()


@pytest.fixture(scope="module")
def scores(source: Model) -> Importance:
    return importance(source, np.zeros((0, 16, 16, 1), np.uint8), "magnitude")


def neurons_share(model: Model) -> float:
    """A judge that likes neurons: cheap, and known in advance."""
    return sum(model.config.neurons) / 1000


def search_to(
    source: Model,
    scores: Importance,
    judge: Callable[[Model], float] = neurons_share,
    *,
    budget: int,
    seed: int = 0,
    progress: Progress = no_progress,
    **shrink: Any,  # noqa: ANN401 - fields of a ShrinkRecipe
) -> tuple[Model, SearchRecord]:
    return search(source, scores, judge, ShrinkRecipe(budgets=(1.0,), **shrink), budget, seed=seed, progress=progress)


@pytest.mark.parametrize("budget_of", ["macs", "parameters"])
@pytest.mark.parametrize(("depth", "share"), [(4, 0.8), (2, 0.3), (1, 0.1), (1, 0.07)])
def test_every_candidate_meets_the_budget_and_lies_on_the_grid(
    source: Model, scores: Importance, budget_of: str, depth: int, share: float
) -> None:
    seen: list[ModelConfig] = []
    whole = macs(source.config, with_head=False) if budget_of == "macs" else parameters(source.config)

    def judge(model: Model) -> float:
        seen.append(model.config)
        return 0.5

    model, record = search_to(
        source,
        scores,
        judge,
        depth=depth,
        budget=round(share * whole),
        budget_of=budget_of,
        candidates=10,
        tolerance=0.03,
        seed=1,
    )
    assert record.tried == len(seen)
    assert record.tried == 10 or (share == 0.07 and record.tried > 4), "near the smallest model there are few shapes"
    assert len(set(map(str, seen))) == record.tried, "no shape is tried twice"
    for each in seen:
        cost = macs(each, with_head=False) if budget_of == "macs" else parameters(each)
        assert abs(cost - share * whole) <= 0.03 * share * whole + 1
        assert len(each.heads) == depth
        assert each.width in allowed_sizes(64, "width")
        assert set(each.head_widths) <= set(allowed_sizes(32, "head_width"))
        assert set(each.neurons) <= set(allowed_sizes(128, "neurons"))
        assert each.stem[0].width in allowed_sizes(32, "stem")
    assert model.config == seen[0], "the first among equals"
    assert record.budget == round(share * whole)


def test_the_best_candidate_is_kept_and_recorded(source: Model, scores: Importance) -> None:
    found: list[float] = []

    def judge(model: Model) -> float:
        found.append(neurons_share(model))
        return found[-1]

    budget = macs(source.config, with_head=False) // 2
    model, record = search_to(source, scores, judge, depth=4, budget=budget, candidates=12, seed=2)
    assert record.accuracy == neurons_share(model) == max(found)
    assert record.shape.config(source.config) == model.config
    assert record.cost == macs(model.config, with_head=False)
    assert msgspec.json.decode(msgspec.json.encode(record), type=SearchRecord) == record


def test_the_same_seed_finds_the_same_and_another_seed_something_else(source: Model, scores: Importance) -> None:
    budget = macs(source.config, with_head=False) // 3
    found = [search_to(source, scores, depth=2, budget=budget, candidates=4, seed=seed) for seed in (5, 5, 6)]
    assert found[0][1] == found[1][1] != found[2][1]
    images = torch.zeros(1, 16, 16, 1, dtype=torch.uint8)
    assert torch.equal(found[0][0](images), found[1][0](images))


@pytest.mark.parametrize(
    ("dimension", "share"), [("heads", 0.85), ("head_width", 0.85), ("width", 0.75), ("neurons", 0.8), ("stem", 0.93)]
)
def test_only_the_chosen_dimensions_are_pruned(
    source: Model, scores: Importance, dimension: Dimension, share: float
) -> None:
    whole = source.config
    budget = round(share * macs(whole, with_head=False))
    model, _ = search_to(source, scores, depth=4, budget=budget, dimensions=(dimension,), candidates=3, tolerance=0.05)
    found = {
        "heads": model.config.heads != whole.heads,
        "head_width": model.config.head_widths != whole.head_widths,
        "width": model.config.width != whole.width,
        "neurons": model.config.neurons != whole.neurons,
        "stem": model.config.stem[0] != whole.stem[0],
    }
    assert [name for name, is_changed in found.items() if is_changed] == [dimension]


def test_progress_is_told_of_every_candidate(source: Model, scores: Importance) -> None:
    told: list[tuple[str, float, float]] = []

    def progress(stage: str, done: float, total: float, note: str = "") -> None:
        told.append((stage, done, total))

    budget = macs(source.config, with_head=False) // 3
    search_to(source, scores, depth=4, budget=budget, candidates=3, progress=progress)
    assert told == [("shrink", 1, 3), ("shrink", 2, 3), ("shrink", 3, 3)]


def test_a_budget_below_the_smallest_model_is_refused_with_both_figures(source: Model, scores: Importance) -> None:
    """By hand, at depth 1: the stem's two convolutions, then a block of width, head width and neurons 16, the pool."""
    smallest = 256 * 9 * 16 + 16 * 9 * 16 * 16 + 16 * 16 * (4 * 16 + 2 * 16) + 2 * 16 * 16 * 16 + 2 * 16 * 16
    with pytest.raises(
        InputError, match=rf"shrink.budgets: expected at least {smallest:,}, .* found 50,000 macs at depth 1: "
    ):
        search_to(source, scores, depth=1, budget=50_000)


def test_a_budget_above_the_unpruned_model_is_refused(source: Model, scores: Importance) -> None:
    whole = macs(source.config, with_head=False)
    with pytest.raises(InputError, match=r"shrink.budgets: expected at most [\d,]+, .* or raise shrink.depth"):
        search_to(source, scores, depth=2, budget=whole)


def test_a_depth_that_does_not_divide_is_refused(source: Model, scores: Importance) -> None:
    with pytest.raises(InputError, match=r"shrink.depth: expected a divisor of the model's 4 blocks, found 3"):
        search_to(source, scores, depth=3, budget=10**6)


def test_a_grid_without_a_shape_near_the_budget_is_refused(source: Model, scores: Importance) -> None:
    whole = macs(source.config, with_head=False)
    with pytest.raises(InputError, match=r"shrink.tolerance: expected a shape on the grid within 0.1% of"):
        search_to(
            source,
            scores,
            depth=4,
            budget=round(0.97 * whole),
            dimensions=("stem",),
            candidates=2,
            tolerance=0.001,
        )


def test_a_grid_with_few_shapes_gives_few_candidates(source: Model, scores: Importance) -> None:
    whole = macs(source.config, with_head=False)
    _, record = search_to(source, scores, depth=4, budget=whole, dimensions=("stem",), candidates=7, tolerance=0.5)
    assert record.tried <= 2
    assert record.drawn == 7 * 20


@examples(0.25)
@given(
    name=st.sampled_from(["ViT-B/16", "DeiT-S", "CCT-7/7x2"]),
    share=st.floats(0.07, 0.45),
    seed=st.integers(0, 2**32 - 1),
)
def test_draws_from_published_shapes_meet_small_budgets(name: str, share: float, seed: int) -> None:
    preset = PRESETS[name]
    whole = uniform_config(
        image_size=(224, 224, 3), mean=(0.5,) * 3, std=(0.5,) * 3, classes=tuple(range(10)), **preset._asdict()
    )
    budget = round(share * macs(whole, with_head=False))
    space = _Space(whole, len(whole.heads), ALL, "macs")
    generator = np.random.default_rng(seed)
    drawn = [space.draw(budget, 0.02, generator) for _ in range(4)]
    met = [each for each in drawn if each is not None]
    assert met
    assert all(abs(space.cost(each) - budget) <= 0.02 * budget for each in met)


def labelled(count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images whose bright quarter tells the class."""
    labels = np.arange(count) % 4
    images = np.random.default_rng(0).integers(0, 60, (count, 16, 16, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 150
    return images, labels


@pytest.mark.parametrize("backbone", ["vit", "deit", "cct"])
def test_a_readout_finds_what_the_own_head_has_not_learnt(backbone: str) -> None:
    """Random weights keep the quarters apart; their random head knows nothing of them."""
    torch.manual_seed(1)
    model = Model(config(backbone))
    images, labels = labelled(200)
    with torch.no_grad():
        model.head.weight.zero_()
        model.positions.normal_()
        if model.distillation_head is not None:
            model.distillation_head.weight.zero_()
        for parameter in model.blocks.parameters():
            parameter.mul_(5.0)
    assert accuracy(run(model.eval(), images), labels) == pytest.approx(0.25)
    assert ReadoutAccuracy(images, labels)(model) > 0.9


def test_a_readout_of_noise_is_near_chance() -> None:
    """Each half is scored by the other half's fit alone: nothing is remembered."""
    torch.manual_seed(1)
    images = np.random.default_rng(0).integers(0, 256, (400, 16, 16, 1), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 4, 400)
    assert 0.15 < ReadoutAccuracy(images, labels)(Model(config())) < 0.35
