"""The run that benchmarks/report_8h makes is one as the profiler would have written it."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.report_8h.made_run import write_run

from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence

SAMPLES = 7_200


def test_a_made_run_has_its_samples_and_its_watts(tmp_path: Path) -> None:
    write_run(tmp_path / "run", SAMPLES)
    evidence = Evidence.read(tmp_path / "run")
    report = analyse(evidence)
    (device,), (scenario,) = report.devices, report.scenarios
    assert (device.samples, device.is_simulated, device.unparsed_lines) == (SAMPLES, True, 0)
    (energy,) = scenario.energies
    assert len(energy.windows) == 48
    idle_w = energy.idle_w
    assert idle_w is not None
    window_s = 0.94 * SAMPLES / 10 / 48
    for window in energy.windows:
        assert window.energy.mean_w is not None
        assert window.energy.total_j is not None
        assert window.energy.mean_w > idle_w + 1
        assert window.energy.total_j == pytest.approx(window.energy.mean_w * window_s, rel=1e-3)
