"""Variants metered by a sensor that samples for real: that of the simulated board, marked SIMULATED."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engines.int8 import with_int8

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EnergyError
from devit_engines import ort
from devit_engines.building import backends, side_by_side
from devit_engines.building.backends import RunSettings
from devit_engines.building.build_all import build_engines, find_engine
from devit_engines.building.prefer import Measuring
from devit_engines.building.store import Store
from devit_engines.engine import CheckedEngine, EngineSpec
from devit_engines.null import PacedEngine, busy
from devit_profiling.bench.meter import LocalMeter, open_meter

SIMULATOR = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano")
TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"


@contextmanager
def quick_meter() -> Iterator[LocalMeter]:
    """The sensor of a simulated Orin Nano; of its settling, only what tells work from rest is waited for."""
    with open_meter(SIMULATOR) as meter:
        meter.settle_s = 0.9
        yield meter


@pytest.mark.system
def test_the_variant_that_lets_the_board_rest_is_kept_for_energy_though_it_is_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 keeps a core busy for 20 ms, fp32 sleeps for 25 ms: 15 W against 4 W."""
    monkeypatch.setattr(side_by_side, "ROUNDS", 2)
    bundle = with_int8(Bundle(Path(shutil.copytree(TINY, tmp_path / "bundle"))), [0])
    store = Store(tmp_path / "store")

    def load(content: bytes, spec: EngineSpec, settings: RunSettings) -> CheckedEngine:
        engine = ort.OrtEngine(content, spec)
        is_int8 = b"QuantizeLinear" in content
        return PacedEngine(engine, 20.0 if is_int8 else 25.0, wait=busy if is_int8 else time.sleep)

    monkeypatch.setitem(backends.BACKENDS, "ort", replace(backends.BACKENDS["ort"], load=load))
    (built,) = build_engines(bundle, store, submodels=[0], prefer="energy", measuring=Measuring(quick_meter))
    int8, fp32 = built.tried
    assert (int8.verdict, fp32.verdict) == ("left", "kept")
    assert int8.why.startswith("more energy, ")
    assert int8.latency is not None
    assert fp32.latency is not None
    assert int8.latency.p50_ms < fp32.latency.p50_ms
    assert int8.energy is not None
    assert fp32.energy is not None
    assert 1.2 * fp32.energy.j_per_answer < int8.energy.j_per_answer
    for energy in (int8.energy, fp32.energy):
        assert (energy.is_simulated, energy.scope) == (True, "module input (VDD_IN)")
        assert 3.0 < energy.mean_w < 17.0
    assert find_engine(bundle, store, 0).key.variant == "fp32"


@pytest.mark.nightly(part="endurance")
def test_the_command_finds_the_sensor_and_prints_what_an_answer_costs(tmp_path: Path) -> None:
    """The tegrastats on the path is the simulator, so all of it is called SIMULATED."""
    bundle = with_int8(Bundle(Path(shutil.copytree(TINY, tmp_path / "bundle"))), [0])
    tool = tmp_path / "tegrastats"
    tool.write_text(f'#!/bin/sh\nexec {" ".join(SIMULATOR)} "$@"\n')
    tool.chmod(0o755)
    devit = [sys.executable, "-c", "from devit_pipeline.cli import main; main()", "build", str(bundle.folder)]
    devit += ["--submodels", "0", "--store", str(tmp_path / "store"), "--prefer", "energy"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(devit, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "by energy, mJ of the module input (VDD_IN), SIMULATED" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    again = subprocess.run([*devit, "--json"], env=environment, capture_output=True, text=True, timeout=60, check=True)
    (report,) = json.loads(again.stdout)
    assert (report["prefer"], report["was_cached"]) == ("energy", True)
    assert [tried["energy"]["is_simulated"] for tried in report["tried"]] == [True, True]


@pytest.mark.parametrize(
    ("line", "why"),
    [("exit 3", "power sampler ended"), ('while sleep 0.05; do echo "INA3221 1ns STRANGE 5mW"; done', "STRANGE")],
)
def test_a_sensor_that_says_nothing_of_the_board_is_one_line(line: str, why: str) -> None:
    command = ("/bin/sh", "-c", line, "sensor")
    with pytest.raises(EnergyError, match=why) as caught, open_meter(command):
        pass
    assert "\n" not in str(caught.value)
