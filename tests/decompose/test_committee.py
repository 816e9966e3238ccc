"""Committees and specialists: who learns which classes, from which images, and how good every subset gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from devit_contract.service.progress import no_progress
from devit_decompose import stages
from devit_decompose.data.dataset import Split
from devit_decompose.dry_run import dry_run
from devit_decompose.models.weights import load_model
from devit_decompose.partition import partition_of
from devit_decompose.recipe.reader import load_recipe
from devit_decompose.recipe.training import AugmentRecipe
from devit_decompose.stages import decompose
from devit_decompose.training.train import Context, Stage, StageResult, fit

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMITTEE = (
    'partition.method="committee"',
    "ensemble.failout_weight=0.0",
    "ensemble.subset_weight=0.75",
    "ensemble.token_weight=0.0",
    "submodels=3",
    "sub_teacher.max_epochs=1",
    "distil.answer={label_weight=1.0, teacher_weight=0.0}",
    "distil.relation={query_weight=0.0, key_weight=0.0, value_weight=0.0}",
)
GROUPS = ((0, 2, 4, 6), (5, 7, 9), (1, 3, 8))


class Planted(torch.nn.Module):
    """Reads the label from the first pixel, and confuses it with the others of its group."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(10, 10))
        with torch.no_grad():
            for group in GROUPS:
                for label in group:
                    self.logits[label, list(group)] = 2.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def test_a_committee_learns_all_classes_with_differing_members(
    tmp_path: Path, small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seeds, in the images that one of them sees, and in the classes that another one looks at most."""
    seen: dict[str, Stage] = {}

    def watched(stage: Stage, context: Context, *, seed: int) -> StageResult:
        seen[stage.name] = stage
        return fit(stage, context, seed=seed)

    monkeypatch.setattr(stages, "fit", watched)
    members = "members=[{}, {images_share=0.5, augment={flip=false, shift_pixels=2}}, {focus=[3, 7], focus_weight=4.0}]"
    found = decompose(
        load_recipe(small_path, (*COMMITTEE, members)), tmp_path / "models", resume=False, progress=no_progress
    )
    assert found is not None
    assert found.class_subsets == (tuple(range(10)),) * 3
    assert [stage.name for stage in found.stages] == ["teacher", "submodel-0", "submodel-1", "submodel-2", "ensemble"]
    assert [len(seen[f"submodel-{device}"].split) for device in range(3)] == [500, 250, 500]
    assert seen["submodel-1"].schedule.augment == AugmentRecipe(flip=False, shift_pixels=2)
    assert seen["submodel-0"].schedule.augment == AugmentRecipe(flip=False)
    assert seen["submodel-0"].ask is None
    weights = [seen[f"submodel-{device}"].objective.class_weights for device in range(3)]
    assert weights[0] is weights[1] is None
    assert [float(weight) for weight in weights[2]] == [1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 4.0, 1.0, 1.0]
    first, third = (
        load_model(tmp_path / "models" / f"submodel-{device}.safetensors", found.submodels[device].config)
        for device in (0, 2)
    )
    assert not torch.allclose(first.head.weight, third.head.weight, atol=0.01)


def test_specialists_are_given_the_classes_that_the_teacher_confuses(small_path: Path) -> None:
    labels = np.arange(40) % 10
    images = np.zeros((40, 8, 8, 1), np.uint8)
    images[:, 0, 0, 0] = labels
    split = Split(images, labels)
    changes = ('partition={method="specialists", generalists=1, sizes=[3, 4, 3]}',)
    found = partition_of(load_recipe(small_path, changes), split, Planted(), split)  # type: ignore[arg-type]
    assert found[0] == tuple(range(10))
    assert {frozenset(group) for group in found[1:]} == {frozenset(group) for group in GROUPS}
    assert len(found[2]) == 4


def test_only_specialists_have_teachers_of_their_own(tmp_path: Path, small_path: Path) -> None:
    changes = (
        'partition={method="specialists", generalists=1, sizes=[4, 6]}',
        "submodels=3",
        "ensemble.failout_weight=0.0",
        "ensemble.subset_weight=0.75",
    )
    short = ("train.max_epochs=1", "distil.schedule.max_epochs=1", "ensemble.schedule.max_epochs=1")
    recipe = load_recipe(small_path, (*changes, *short))
    found = decompose(recipe, tmp_path / "models", resume=False, progress=no_progress)
    assert found is not None
    assert [len(classes) for classes in found.class_subsets] == [10, 4, 6]
    specialists = [stage for device in (1, 2) for stage in (f"sub-teacher-{device}", f"submodel-{device}")]
    assert [stage.name for stage in found.stages] == ["teacher", "submodel-0", *specialists, "ensemble"]


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-pairs"])
@pytest.mark.parametrize("method", ["committee", "specialists"])
def test_the_example_recipes_fit_together_and_know_all_classes(name: str, method: str) -> None:
    recipe = load_recipe(EXAMPLES / f"{name}-{method}.toml")
    assert (recipe.partition.method, recipe.submodels) == (method, 4)
    _, rows = dry_run(recipe, no_progress)
    every = recipe.data.class_count
    known = [int(row[4]) for row in rows[1:]]
    assert known[0] == every
    assert sum(known) == (4 * every if method == "committee" else 2 * every)
