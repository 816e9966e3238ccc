"""One model on this machine, measured in a process of its own; boards are SIMULATED."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec import structs

from devit_contract.artefacts.files import write_json
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EngineError, InputError
from devit_contract.service.progress import no_progress
from devit_engines.engine import ModelRef
from devit_profiling.bench.bench import BENCH, bench_device, without_power
from devit_profiling.plan.device_profile import read_profiles

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
SIMULATOR = [sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano"]
SHORT = structs.replace(
    BENCH,
    settle_s=0.0,
    idle_s=0.5,
    warm_up_s=0.3,
    warm_up_answers=3,
    duration_s=0.5,
    interval_ms=20,
    idle_samples=3,
    window_samples=3,
)


@pytest.mark.parametrize("model", [0, "baseline"])
def test_a_model_is_measured_with_the_joules_of_the_board(tmp_path: Path, model: ModelRef) -> None:
    """A stand-in of 5 ms in a process of its own, and a SIMULATED board."""
    found = bench_device("jetson1", Bundle(TINY), model, SHORT, no_progress, engine="paced:5", sensor_command=SIMULATOR)
    graph = Bundle(TINY).manifest.baseline if model == "baseline" else Bundle(TINY).manifest.submodels[0]
    assert graph is not None
    assert (found.device, found.model, found.macs, found.engine) == ("jetson1", model, graph.macs, "paced:5 engine")
    assert 5 <= found.quantiles_ms[0] <= found.p50_ms <= found.p99_ms <= found.quantiles_ms[-1]
    assert len(found.quantiles_ms) == 201
    assert found.quantiles_ms[100] == pytest.approx(found.p50_ms, abs=1e-3)
    assert found.quantiles_ms[198] == pytest.approx(found.p99_ms, abs=1e-3)
    assert found.is_simulated
    assert found.idle_w is not None
    assert found.idle_w > 1
    assert found.above_idle_j is not None
    assert found.overhead_ms is None
    write_json(tmp_path / "jetson1.json", found)
    assert read_profiles(tmp_path / "jetson1.json") == [found]


def test_without_a_sensor_there_are_times_and_the_reason_why_no_joules() -> None:
    found = bench_device("jetson1", Bundle(TINY), 1, without_power(SHORT), no_progress, engine="paced:2")
    assert (found.idle_w, found.above_idle_j) == (None, None)
    assert "--no-power" in found.not_measured


def test_too_few_inferences_and_engines_that_are_not_there_are_refused(tmp_path: Path) -> None:
    plan = without_power(SHORT)
    with pytest.raises(InputError, match="expected 20 inferences to plan with, found"):
        bench_device("jetson1", Bundle(TINY), 1, plan, no_progress, engine="paced:100")
    with pytest.raises(EngineError, match="devit build"):
        bench_device("jetson1", Bundle(TINY), 1, plan, no_progress, store=tmp_path)
