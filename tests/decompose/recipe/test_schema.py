from __future__ import annotations

import sys
from pathlib import Path

import pytest

from devit_contract.errors import InputError, ManifestError
from devit_decompose.recipe.checks import check_recipe
from devit_decompose.recipe.reader import load_recipe

EXAMPLES = Path(__file__).parents[3] / "examples"
EXAMPLE = EXAMPLES / "fashion-mnist.toml"


def test_a_change_reaches_the_field_it_names() -> None:
    changed = load_recipe(EXAMPLE, ("sub_teacher.decay_epochs=2", 'name="x"', "students.0.mlp_ratio=3.0"))
    assert changed.sub_teacher is not None
    assert (changed.sub_teacher.decay_epochs, changed.name, changed.students[0].mlp_ratio) == (2, "x", 3.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("ensemble.speed=2", "ensemble.speed"),
        ("ensemble", "ensemble"),
        ("ensemble.schedule.batch=many", "many"),
        ('seed="one"', "seed"),
        ("ensemble.schedule.batch.x=1", "batch.x"),
        ("students.3.depth=1", "students.3"),
        ("submodels=0", "submodels"),
        ("submodels=20", "submodels"),
        ("teacher.heads=0", "heads"),
        ("teacher.heads=3", "heads"),
        ("teacher.stem=[]", "stem"),
        ("students.0.mlp_ratio=0.0", "mlp_ratio"),
        ('teacher.weights=""', "train"),
        ("data.mean=[0.1, 0.2]", "data.mean"),
        ("ensemble.schedule.batch=0", "batch"),
        ("partition.sizes=[3, 3, 3]", "partition.sizes"),
        ("partition.sizes=[3, 3, 3, 3]", "partition.sizes"),
        ('partition.method="best"', "partition.method"),
        ("students=[]", "students"),
        ('teacher.preset="DeiT-XL"', "preset"),
        ('teacher.preset="DeiT-S"', "preset"),
        ("distil.answer.label_weight=-1.0", "label_weight"),
        ("distil.answer.temperature=0.0", "temperature"),
        ("ensemble.failout=1.5", "ensemble.failout"),
        ('distil.relation.form="new"', "relation.form"),
        ('data.source="pairs"', "augment.flip"),
        (
            'shrink={depth=2, budgets=[0.07], source="teacher"}',
            "students",
        ),
        ('shrink={depth=2, budgets=[0.07, 0.1], source="student"}', "shrink.budgets"),
        ('shrink={depth=2, budgets=[1.5], source="student"}', "shrink.budgets"),
        ('views="some"', "views"),
        ('views="own"', "views"),
        ("view={share=0.7}", "views"),
        ("view={share=0.0}", "view.share"),
        ("view={turn_degrees=181.0}", "view.turn_degrees"),
    ],
)
def test_a_change_that_fits_nothing_is_refused_in_one_line_that_names_the_key(change: str, named: str) -> None:
    with pytest.raises(InputError, match="--set") as refused:
        load_recipe(EXAMPLE, (change,))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("ensemble.subset_weight=0.0",), "ensemble.subset_weight: expected more than 0 for a committee"),
        (("ensemble.failout_weight=0.4",), "ensemble: expected failout_weight or subset_weight, found both"),
        (("ensemble.subset_weight=1.5",), "ensemble.subset_weight: expected 0 to 1, found 1.5"),
        (("submodels=1", "members=[]"), "ensemble.subset_weight: expected 0 for one submodel"),
        (("partition.sizes=[3, 3, 2, 2]",), "partition.sizes: expected none"),
        (("partition.generalists=1",), 'partition.generalists: expected 0 for method "committee", found 1'),
        (('partition.method="specialists"',), "partition.generalists: expected 1 to 3, found 0"),
        (('partition={method="specialists", generalists=4}',), "partition.generalists: expected 1 to 3, found 4"),
        (
            ('partition={method="specialists", generalists=2, sizes=[3, 3, 2, 2]}',),
            "partition.sizes: expected 2 numbers from 1 that sum up to 10 classes",
        ),
        (("members=[{}]",), "members: expected 0 or 4 entries, found 1"),
        (("members.0.images_share=0.0",), "members.images_share: expected more than 0 and up to 1, found 0.0"),
        (("members.0.focus=[10]",), "members.focus: expected labels from 0 to 9"),
        (
            ('partition={method="specialists", generalists=1}', "members.1.focus=[0]"),
            "members.focus: expected labels from 0 to 9, for submodels that know all classes",
        ),
        (("members.0.focus_weight=0.0",), "members.focus_weight: expected more than 0, found 0.0"),
        (('data.source="pairs"', "distil.schedule.augment={flip=false}"), "augment.flip"),
    ],
)
def test_a_committee_that_contradicts_itself_is_refused(changes: tuple[str, ...], named: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(EXAMPLES / "fashion-mnist-committee.toml", changes)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("students.0.stem=[{width = 16}, {width = 64, stride = 2}]",), "students.0: expected as many tokens"),
        (("students.0.depth=4",), "students.0.depth: expected a divisor of the 6 blocks"),
        (("students.0.depth=12",), "students.0.depth"),
        (("distil.relation.student_block=1",), "student_block: expected 0 to 0, found 1"),
        (('distil.relation.form="heads"', "distil.relation.heads=3"), "distil.relation.heads"),
        (("students=[]", "shrink={depth=4, budgets=[0.07]}"), "shrink.depth: expected a divisor of the 6 blocks"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_before_training(changes: tuple[str, ...], named: str) -> None:
    with pytest.raises(InputError) as refused:
        check_recipe(load_recipe(EXAMPLE, changes))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        'teacher.weights="timm:vit_tiny_patch16_224"',
        "ensemble.schedule.augment.mixup=0.2",
        'data.source="cifar100"',
    ],
)
def test_timm_is_missed_before_training_and_not_in_its_last_stage(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    check_recipe(load_recipe(EXAMPLE))
    with pytest.raises(InputError, match=r"^timm is not installed: run \S+ -m pip install 'devit\[timm\]'$"):
        check_recipe(load_recipe(EXAMPLE, (change,)))


def test_an_unknown_field_in_a_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(EXAMPLE.read_text().replace("seed = 1", "seed = 1\nsede = 2", 1))
    with pytest.raises(ManifestError, match=r"recipe.toml: field .*sede"):
        load_recipe(path)


def test_a_recipe_takes_what_it_does_not_say_from_its_bases(tmp_path: Path) -> None:
    (tmp_path / "child.toml").write_text(f'base = ["{EXAMPLE}"]\nseed = 7\n[ensemble.schedule]\nbatch = 64\n')
    found, base = load_recipe(tmp_path / "child.toml"), load_recipe(EXAMPLE)
    assert (found.seed, found.ensemble.schedule.batch) == (7, 64)
    assert found.ensemble.schedule.learning_rate == base.ensemble.schedule.learning_rate
    assert found.data == base.data


def test_later_bases_stand_above_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("seed = 3\nthreads = 3\n")
    (tmp_path / "child.toml").write_text(f'base = ["{EXAMPLE}", "one.toml"]\nthreads = 2\n')
    found = load_recipe(tmp_path / "child.toml")
    assert (found.seed, found.threads) == (3, 2)


def test_bases_that_lead_back_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = ["b.toml"]\n')
    (tmp_path / "b.toml").write_text('base = ["a.toml"]\n')
    with pytest.raises(InputError, match="circle"):
        load_recipe(tmp_path / "a.toml")


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = ["nowhere.toml"]\n')
    with pytest.raises(InputError, match=r"nowhere\.toml: cannot be read"):
        load_recipe(tmp_path / "a.toml")


def test_own_views_that_leave_gaps_and_relations_between_other_tokens_are_refused() -> None:
    own = EXAMPLES / "fashion-mnist-own-views.toml"
    recipe = load_recipe(own)
    assert [view is not None and view.height for view in map(recipe.view_of, range(4))] == [20] * 4
    with pytest.raises(InputError, match=r"share: expected at least 0\.5"):
        load_recipe(own, ("view.share=0.4",))
    with pytest.raises(InputError, match=r"distil\.relation: expected none with views"):
        load_recipe(own, ("distil.relation.key_weight=0.1",))
    assert load_recipe(EXAMPLE).view_of(0) is None
