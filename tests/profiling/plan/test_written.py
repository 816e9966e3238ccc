"""A choice written into a fleet file, and into a recipe."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.profiling.plan.made_cell import made_cell

from devit_contract.errors import InputError, ManifestError
from devit_profiling.plan.choice import choose
from devit_profiling.plan.figures import ROOM, Bench, Figures, Promise
from devit_profiling.plan.goal import Goal
from devit_profiling.plan.modes import Mode
from devit_profiling.plan.sizes import Size, sizes_of, write_recipe
from devit_profiling.plan.written import write_fleet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLEET = """# our cell
schema = 2
[node]
endpoint = "tcp://127.0.0.1:7711"
client_endpoint = "tcp://127.0.0.1:7712"

[[device]]
name = "dev0"
submodel = 0
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def staged() -> Figures:
    bench = Bench(made_cell([10, 10, 10], noises=[0.25, 0.25, 0.25]), frames=1000)
    return choose(bench, Goal(100, rate_hz=120)).picked


@pytest.mark.parametrize(
    "more",
    [
        "",
        "\n[serving] # how\npolicy = 'all'  # old\ndeadline_ms = 20\n\n[certain]\naudit = 0.02\nstages = [2]\n",
        "[certain]\nflips=0.3\n",
    ],
)
def test_a_fleet_file_keeps_all_that_the_plan_does_not_say(tmp_path: Path, staged: Figures, more: str) -> None:
    old, new = tmp_path / "fleet.toml", tmp_path / "planned.toml"
    # What the node knows of these sections is not this test's matter: the reader of the fleet sees the first part.
    old.write_text(FLEET + more.split("[certain]")[0].replace("policy = 'all'  # old\n", ""))
    write_fleet(old, new, staged, Promise(0.003, 0.9), deadline_ms=40)
    found = tomllib.loads(new.read_text())
    assert found["serving"]["policy"] == "certain"
    assert found["certain"]["stages"] == list(staged.stages)
    assert (found["certain"]["flips"], found["certain"]["confidence"]) == (0.003, 0.9)
    assert found["certain"]["order"] == staged.order
    assert found["serving"].get("deadline_ms", 50) == (40 if "20" in more else 50)
    assert found["device"] == tomllib.loads(old.read_text())["device"]
    assert new.read_text().startswith("# our cell\n")


def test_a_plan_written_twice_is_the_same(tmp_path: Path, staged: Figures) -> None:
    from devit_profiling.plan.written import _with, tables_of

    once = FLEET
    for section, values in tables_of(staged, Promise()).items():
        once = _with(once, section, values)
    again = once
    for section, values in tables_of(staged, Promise()).items():
        again = _with(again, section, values)
    assert tomllib.loads(again) == tomllib.loads(once)
    assert again.count("[certain]") == again.count("policy = ") == 1


def test_a_fleet_file_in_another_form_is_refused_and_not_broken(tmp_path: Path, staged: Figures) -> None:
    old = tmp_path / "fleet.toml"
    old.write_text(FLEET.replace("schema = 2", "schema = 2\nserving = { deadline_ms = 20 }"))
    with pytest.raises(ManifestError, match=r"expected its sections as \[serving\] and \[certain\]"):
        write_fleet(old, tmp_path / "planned.toml", staged, Promise(), deadline_ms=40)
    assert not (tmp_path / "planned.toml").exists()


def test_unequal_devices_get_sizes_and_classes_by_their_speed() -> None:
    """Three submodels of the same size, on devices of 10, 10 and 40 ms; paced answers never wait."""
    cell = made_cell([10, 10, 40], noises=[0.4, 0.4, 0.4])
    graph = cell.manifest.submodels[0]
    labels = tuple(f"class{number}" for number in range(20))
    manifest = replace_manifest(cell.manifest, submodels=(graph,) * 3, labels=labels)
    bench = Bench(replace(cell, manifest=manifest), arrivals="paced", frames=300)
    time_ms, sizes = sizes_of(bench, Mode("all"), Goal(31.0 / ROOM, rate_hz=20))
    assert time_ms == pytest.approx(30.0, abs=0.1), "31 ms, of which 1 ms is beyond the inference"
    assert [size.scale for size in sizes] == pytest.approx([3.0, 3.0, 0.75], rel=0.01)
    assert [size.macs for size in sizes] == pytest.approx([3 * graph.macs] * 2 + [0.75 * graph.macs], rel=0.01)
    assert [size.classes for size in sizes] == [9, 9, 2]
    with pytest.raises(InputError, match="no size keeps"):
        sizes_of(bench, Mode("all"), Goal(0.9, rate_hz=20))


def replace_manifest(manifest: object, **changes: object) -> object:
    import msgspec

    return msgspec.structs.replace(manifest, **changes)  # type: ignore[type-var]


SIZES = [Size("dev0", 400, 4.0, 5), Size("dev1", 100, 1.0, 3), Size("dev2", 25, 0.25, 2), Size("dev3", 25, 0.25, 1)]


def test_the_recipe_of_the_sizes_is_one_that_decompose_reads(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="devit decompose needs torch")
    from devit_decompose.recipe.reader import load_recipe

    shipped = ROOT / "examples" / "fashion-mnist.toml"
    sizes = [replace(size, classes=classes) for size, classes in zip(SIZES, (4, 3, 2, 1), strict=True)]
    write_recipe(tmp_path / "sizes.toml", shipped, sizes, None)
    recipe = load_recipe(tmp_path / "sizes.toml")
    widths = [[layer.width for layer in student.stem] for student in recipe.students]
    assert widths == [[32, 64, 128], [16, 32, 64], [8, 16, 32], [8, 16, 32]]
    assert recipe.partition.sizes == (4, 3, 2, 1)
    assert recipe.data == load_recipe(shipped).data


def test_what_is_pruned_gets_its_share_of_the_baseline(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text("[shrink]\ndepth = 2\nbudgets = [0.1]\n[partition]\nmethod = 'none'\n")
    write_recipe(tmp_path / "sizes.toml", base, SIZES, 1000)
    assert tomllib.loads((tmp_path / "sizes.toml").read_text()) == {
        "base": ["base.toml"],
        "shrink": {"budgets": [0.4, 0.1, 0.025, 0.025]},
    }


def test_a_recipe_without_students_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text("schema = 2\n")
    with pytest.raises(InputError, match=r"expected \[\[students\]\] with a stem"):
        write_recipe(tmp_path / "sizes.toml", base, SIZES, None)
