"""Each simulated board in real time, by its program and the sampler: are the joules the true ones?"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from devit_contract.wire.messages import Mark, PowerLine
from devit_profiling.figures.joules import device_energy
from devit_profiling.figures.power import power_of
from devit_profiling.record.record import IDLE, OUTSIDE, WARM_UP, WINDOW, Boundary, Phase, Plan, Recording
from devit_profiling.sensor.board_table import BOARDS
from devit_profiling.sensor.local_sampler import LocalSampler
from devit_profiling.simulator.board import SIMULATED_BOARDS

if TYPE_CHECKING:
    from conftest import FakeRun
else:
    FakeRun = object

ROOT = Path(__file__).parents[3]
NAME = "jetson1"
START_S, IDLE_S, WARM_UP_S, WINDOW_S = 3.0, 4.0, 3.5, 10.05
RATE_HZ = 100
WORKER = """
import os, sys
os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
sys.stdin.readline()
while True:
    pass
"""
"""Rests until it is told to work; first among all (as root), so that a busy machine does not make its load unsteady."""


def boundary(moment_ns: int) -> Boundary:
    return Boundary(moment_ns, {NAME: Mark(moment_ns, moment_ns * RATE_HZ // 10**9, 0)})


def sampled(key: str, truth: Path, worker: int, until_ns: int) -> tuple[PowerLine, ...]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.profiling.simulation import truthful_program"
    command = (sys.executable, "-c", f"{code}; truthful_program.main()", key, str(truth), str(worker))
    with LocalSampler(100, command=command) as sampler:
        sampler.collect((until_ns - time.monotonic_ns()) / 1e9 + 0.5)
    assert sampler.problem == ""
    return tuple(sampler.lines)


def true_w(truth: Path, ends_ns: Sequence[int]) -> float:
    """Mean power between two moments: the program tells its energy at every line."""
    rows = [line.split(",") for line in truth.read_text().splitlines()[1:]]
    told_ns, told_j = np.array([int(row[0]) for row in rows], np.float64), np.array([float(row[1]) for row in rows])
    start_j, end_j = np.interp(np.array(ends_ns, np.float64), told_ns, told_j)
    return float(end_j - start_j) / (ends_ns[1] - ends_ns[0]) * 1e9


@pytest.mark.nightly(part="endurance")
def test_joules_of_every_board_in_real_time_are_the_true_ones(fake_run: FakeRun, tmp_path: Path) -> None:
    """All at once; what they watch works as hard as this machine lets it."""
    boundaries_ns = [time.monotonic_ns() + round(1e9 * offset_s) for offset_s in np.cumsum([START_S, IDLE_S])]
    with (
        subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE) as worker,
        ExitStack() as stack,
        ThreadPoolExecutor(len(SIMULATED_BOARDS)) as pool,
    ):
        stack.callback(worker.kill)
        until_ns = boundaries_ns[1] + round(1e9 * (WARM_UP_S + WINDOW_S))
        jobs = {key: pool.submit(sampled, key, tmp_path / key, worker.pid, until_ns) for key in SIMULATED_BOARDS}
        time.sleep(max(0.0, (boundaries_ns[1] - time.monotonic_ns()) / 1e9))  # the idle phase is measured meanwhile
        assert worker.stdin is not None
        boundaries_ns[1] = time.monotonic_ns()
        worker.stdin.write(b"work\n")
        worker.stdin.flush()
        boundaries_ns += [boundaries_ns[1] + round(1e9 * WARM_UP_S), until_ns]
        lines = {key: job.result(60.0) for key, job in jobs.items()}
    boundaries = [boundary(moment_ns) for moment_ns in boundaries_ns]
    phases = [
        Phase("", kind, number, start, end)
        for (kind, number), start, end in zip(
            ((IDLE, OUTSIDE), (WARM_UP, OUTSIDE), (WINDOW, 1)), boundaries, boundaries[1:], strict=False
        )
    ]
    run = fake_run.recording().run
    for key in SIMULATED_BOARDS:
        device = fake_run.changed(model=BOARDS[key].model_prefixes[0]).recording().run.devices[0]
        power = power_of(Recording(run, {NAME: lines[key]}, ()), device)
        energy = device_energy(power, phases, Plan(idle_s=IDLE_S, windows=1, has_idle_after=False))
        assert energy.total_j_per_inference is not None, energy
        assert energy.dynamic_j_per_inference is not None, energy
        idle_w, busy_w = (true_w(tmp_path / key, ends_ns) for ends_ns in (boundaries_ns[:2], boundaries_ns[2:]))
        total = energy.total_j_per_inference.mean * RATE_HZ / busy_w - 1
        dynamic = energy.dynamic_j_per_inference
        error_w = dynamic.mean * RATE_HZ - (busy_w - idle_w)
        half_w = RATE_HZ * math.hypot(dynamic.steps_95 or 0.0, dynamic.idle_95 or 0.0)
        print(f"{key}: {busy_w:.2f} W, idle {idle_w:.2f} W: total {total:+.2%}, above idle {error_w:+.3f} W")
        assert abs(total) <= 0.015
        # One window has no spread; four seconds of idle power are some five independent readings.
        assert abs(error_w) <= 1.5 * half_w + 0.015 * busy_w
