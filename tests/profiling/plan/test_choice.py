"""Which mode is picked for a goal, what is said of it, and which goal is offered where none is kept."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.profiling.plan.made_cell import IMAGES, made_cell
from tests.support.properties import examples

from devit_contract.artefacts.manifest import SubsetAccuracy
from devit_contract.errors import InputError
from devit_profiling.plan.cell import Cell, PlannedDevice
from devit_profiling.plan.choice import Choice, choose
from devit_profiling.plan.figures import Bench
from devit_profiling.plan.goal import Goal, parse_goal
from devit_profiling.plan.modes import Mode
from devit_profiling.plan.nearest import distance
from devit_profiling.plan.simulation import Server

FRAMES = IMAGES // 2


def pick(cell: Cell, goal: str) -> Choice:
    return choose(Bench(cell, frames=FRAMES), parse_goal(goal, deadline_ms=50))


def test_one_good_device_is_picked_where_the_others_add_nothing() -> None:
    """The answers of two that know almost nothing change none of the first one's."""
    found = pick(made_cell([10, 10, 10], noises=[0.15, 9.0, 9.0]), "rate=20")
    assert found.picked.policy == "single"
    assert found.advice.startswith("one device with one model is the better choice")


def test_a_cell_is_picked_where_accuracy_wants_all_devices_and_there_is_time() -> None:
    found = pick(made_cell([10, 10, 10], noises=[0.5, 0.5, 0.5]), "rate=5, deadline-ms=60")
    accuracies = {figures.title: figures.accuracy for figures in found.modes}
    assert accuracies["cell"] == max(accuracies.values())
    assert accuracies["cell"] > accuracies["single"] + 0.02
    assert found.picked.accuracy >= accuracies["cell"] - 0.001
    assert found.picked.policy in ("all", "certain")
    assert found.advice == ""


def test_stages_are_picked_where_the_rate_is_too_high_for_all_devices() -> None:
    """Three devices of 10 ms answer 100 a second together and 300 apart."""
    found = pick(made_cell([10, 10, 10], noises=[0.25, 0.25, 0.25]), "rate=120, deadline-ms=100")
    by_title = {figures.title: figures for figures in found.modes}
    assert by_title["cell"].misses == ("rate",)
    assert by_title["cell"].answers_per_s == pytest.approx(100, rel=0.03)
    assert by_title["replica"].answers_per_s == pytest.approx(300, rel=0.03)
    assert found.picked.policy == "certain"
    assert found.picked.flips is not None
    assert found.picked.flips <= 0.01
    assert "cell misses rate" in found.why
    assert "single misses rate" in found.why


def test_with_an_accuracy_in_the_goal_the_cheapest_mode_that_has_it_is_picked() -> None:
    cell = made_cell([10, 10, 10], noises=[0.3, 0.3, 0.3])
    best = pick(cell, "rate=5")
    least = 100 * min(figures.accuracy for figures in best.modes) - 1
    cheap = pick(cell, f"rate=5, accuracy={least:.1f}")
    assert cheap.picked.j_per_answer == min(figures.j_per_answer or 99.0 for figures in cheap.modes)
    assert cheap.picked.policy == "single"


def test_watts_are_idle_power_and_inferences() -> None:
    """Of 'single', a device for each one that may be lost idles beside it."""
    found = pick(made_cell([10, 10, 10]), "rate=20, survive=1, deadline-ms=60")
    watts = {figures.title: figures.watts for figures in found.modes}
    assert watts["cell"] == pytest.approx(3 * 2.0 + 20 * 3 * 0.05)
    assert watts["single"] == pytest.approx(2 * 2.0 + 20 * 0.05)
    cell = next(figures for figures in found.modes if figures.title == "cell")
    assert cell.j_per_answer == pytest.approx(9.0 / 20)


def test_what_has_to_survive_a_loss_is_judged_without_the_device_that_is_needed_most() -> None:
    """Two devices of 10 ms and one of 40 ms answer 225 a second; without a fast one, 125."""
    cell = made_cell([10, 10, 40])
    goal = "rate=150, deadline-ms=1000"
    before = {figures.title: figures for figures in pick(cell, goal).modes}["replica"]
    assert before.misses == ()
    with pytest.raises(InputError, match="no mode keeps deadline-ms=1000, rate=150, survive=1"):
        pick(cell, f"{goal}, survive=1")
    after = next(
        found for found in pick(cell, "rate=100, deadline-ms=1000, survive=1").modes if found.title == "replica"
    )
    assert (after.answers_per_s, after.answers_per_s_lost) == pytest.approx((225, 125), rel=0.04)


@pytest.mark.parametrize(("deadline_ms", "misses"), [(12.0, ("deadline-ms",)), (12.3, ())])
def test_a_deadline_is_kept_with_a_tenth_to_spare(deadline_ms: float, misses: tuple[str, ...]) -> None:
    """Paced answers take 10 ms and 1 ms beyond."""
    bench = Bench(made_cell([10, 10, 10]), arrivals="paced", frames=200)
    figures = bench.figures(Mode("all"), Goal(deadline_ms, rate_hz=20))
    assert (figures.p99_ms, figures.misses) == (pytest.approx(11.0), misses)


def test_the_accuracy_without_one_device_is_the_lowest_of_all_losses() -> None:
    cell = made_cell([10, 10, 10], noises=[0.2, 0.5, 0.9])
    found = {figures.title: figures for figures in pick(cell, "rate=1").modes}["cell"]
    assert found.accuracy_one_lost == pytest.approx(min(cell.accuracy(mask) for mask in (0b011, 0b101, 0b110)))
    assert found.accuracy == pytest.approx(cell.accuracy(0b111))


@pytest.mark.parametrize(
    ("time_ms", "accuracy", "idle_w", "is_better"),
    [(20.0, 0.99, 2.0, True), (300.0, 0.99, 2.0, False), (20.0, 0.4, 2.0, False), (20.0, 0.99, 20.0, False)],
)
def test_the_baseline_model_on_one_device_is_named_where_it_is_better(
    time_ms: float, accuracy: float, idle_w: float, is_better: bool
) -> None:
    """Not where it is too slow, less accurate, or takes more joules."""
    device = PlannedDevice("dev0", Server(np.full(3, time_ms), 1.0), idle_w, 0.1)
    cell = made_cell([10, 10, 10], noises=[0.4, 0.5, 0.5], baseline=device)
    manifest = msgspec.structs.replace(cell.manifest, baseline_accuracy=SubsetAccuracy(0, accuracy, accuracy))
    found = pick(replace(cell, manifest=manifest), "rate=5, deadline-ms=60")
    assert found.baseline is not None
    assert found.baseline.is_better == is_better
    assert ("the baseline model on dev0" in found.advice) == is_better
    assert (found.baseline.p99_ms is None) == (time_ms > 200)
    assert found.baseline.watts == pytest.approx(idle_w + 5 * 0.1)


def test_without_a_calibration_there_are_all_modes_but_those_that_need_it() -> None:
    """The manifest's own accuracies of subsets do; the tiny bundle has two devices."""
    cell = made_cell([10, 10], has_calibration=False)
    found = pick(cell, "rate=1")
    assert {figures.policy for figures in found.modes} == {"single", "replica", "all"}
    assert all(figures.flips is None for figures in found.modes)


def test_modes_that_answer_on_fewer_than_the_quorum_are_left_out() -> None:
    cell = replace(made_cell([10, 10, 10]), min_devices=2)
    found = pick(cell, "rate=1")
    assert {figures.title for figures in found.modes} >= {"certain 2-1 best", "cell"}
    assert not any(figures.policy in ("single", "replica") or figures.stages == (1, 1) for figures in found.modes)


def test_a_goal_that_cannot_be_judged_is_refused() -> None:
    with pytest.raises(InputError, match="survive: expected less than the 3 devices, found 3"):
        pick(made_cell([10, 10, 10]), "survive=3")
    with pytest.raises(InputError, match="the profile of dev0, dev1, dev2 has no joules"):
        pick(made_cell([10, 10, 10], idle_w=None), "watts=5")


@examples(0.25)
@given(
    deadline_ms=st.sampled_from([5, 9, 10]),
    rate=st.sampled_from([5, 180, 900]),
    survive=st.sampled_from([0, 2]),
    watts=st.sampled_from(["", ", watts=3"]),
)
def test_the_nearest_goal_of_a_refusal_is_kept_by_the_mode_it_names(
    deadline_ms: int, rate: int, survive: int, watts: str
) -> None:
    """It is no tighter than the one that was asked for, and the next plan picks a mode for it."""
    bench = Bench(made_cell([10, 15, 10]), frames=200)
    asked = f"deadline-ms={deadline_ms}, rate={rate}, survive={survive}{watts}"
    goal = parse_goal(asked, 50)
    with pytest.raises(InputError) as refused:
        choose(bench, goal)
    found = re.fullmatch(rf"no mode keeps {asked}: the nearest goal that one does is (.*) \((.*)\)", str(refused.value))
    assert found is not None, str(refused.value)
    near = parse_goal(found[1], 50)
    assert distance(goal, near) > 0
    assert near.deadline_ms >= goal.deadline_ms
    assert near.rate_hz <= goal.rate_hz
    assert near.survive <= goal.survive
    again = choose(bench, near)
    assert found[2] in [figures.title for figures in again.modes if not figures.misses]
