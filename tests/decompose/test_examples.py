"""The recipes in examples/: those of the paper are built and run for one step, the smoke recipe is trained."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from devit_contract.service.progress import no_progress
from devit_decompose.dry_run import dry_run
from devit_decompose.recipe.checks import check_recipe
from devit_decompose.recipe.reader import load_recipe
from devit_decompose.stages import decompose

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = {"devit": (61.6e3, 0.021), "dedeit": (17.6e3, 0.072), "decct": (5.5e3, 0.30)}
"""Published cost of the teacher in million multiply-accumulates, and the largest share of it for a submodel."""
DATA = {"imagenet-1k": 1000, "cifar-100": 100, "flowers-102": 102, "stanford-cars": 196}
OTHER_DATA = [("decct", data) for data in DATA if data != "cifar-100"]
"""With the smallest model."""


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_each_of_the_papers_recipes_fits_together(model: str, data: str) -> None:
    recipe = load_recipe(EXAMPLES / "paper" / f"{model}-{data}.toml")
    check_recipe(recipe)
    assert recipe.name == f"{model}-{data}"
    assert (recipe.submodels, recipe.data.class_count) == (4, DATA[data])


@pytest.mark.nightly(part="models")
@pytest.mark.parametrize(("model", "data"), [*((model, "cifar-100") for model in MODELS), *OTHER_DATA])
def test_each_of_the_papers_recipes_is_built_and_runs_one_step_of_every_stage(model: str, data: str) -> None:
    """Each model and each data set once: of a data set, only the number of classes counts here."""
    _, rows = dry_run(load_recipe(EXAMPLES / "paper" / f"{model}-{data}.toml"), no_progress)
    cost, share = MODELS[model]
    assert float(rows[0][1]) == pytest.approx(cost, rel=0.02)
    for row in rows[1:]:
        assert float(row[1]) <= share * float(rows[0][1])
    assert sum(int(row[4]) for row in rows[1:]) == DATA[data]


@pytest.mark.nightly(part="models")
def test_the_smoke_recipe_trains_every_stage_on_real_images_within_a_minute(tmp_path: Path) -> None:
    """A minute of this process's own time, since the machine may be busy; chance is 10 %."""
    started_s = time.process_time()
    recipe = load_recipe(EXAMPLES / "smoke.toml")
    found = decompose(recipe, tmp_path / "models", resume=False, progress=no_progress)
    cpu_s = time.process_time() - started_s
    assert found is not None
    fused = {subset.mask: subset.test_accuracy for subset in found.subsets}[0b1111]
    print(f"smoke recipe: {cpu_s:.0f} s of CPU time, fused {fused:.1%}")
    assert fused > 0.6
    assert cpu_s < 90
