"""This machine's own sensor: which one is taken, and what it gives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.profiling.sysfs_tree import break_file, orin_nano

from devit_contract.errors import EnergyError
from devit_profiling.sensor.local_sampler import LocalSampler, find_sensor
from devit_profiling.sensor.sensor_lines import parse_sensor_log

SIMULATOR = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano")


def test_tegrastats_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_sensor() == (str(tool),)


def test_the_chips_are_read_where_tegrastats_is_not(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    assert find_sensor(tmp_path) == (sys.executable, "-m", "devit_profiling.sensor.hwmon", "--root", str(tmp_path))


def test_a_machine_without_a_sensor_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match=r"^expected tegrastats on the PATH or a power monitor chip, found neither: "):
        LocalSampler(root=tmp_path)
    folder = orin_nano(tmp_path)
    for channel in (1, 2, 3):
        break_file(folder / f"in{channel}_input")
    with pytest.raises(EnergyError, match=r"VDD_IN .* is left out: reading it fails .*: this machine has no sensor$"):
        LocalSampler(root=tmp_path)


def test_lines_of_the_chips_are_gathered_for_as_long_as_asked(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    with LocalSampler(20, root=tmp_path) as sampler:
        while len(sampler.lines) < 3:  # until it has started
            sampler.collect(0.1)
        before = len(sampler.lines)
        sampler.collect(0.5)
        cost = sampler.whole_cost
    assert sampler.problem == ""
    assert 5 <= len(sampler.lines) - before <= 30
    log = parse_sensor_log(sampler.lines)
    assert {sample.rails_mw["VDD_IN"] for sample in log.samples} == {4359}
    stamps = [sample.monotonic_ns for sample in log.samples]
    assert stamps == sorted(set(stamps))
    assert cost is not None
    assert 0 < (cost.sampler_cpu_s or 0) < cost.duration_s
    assert 0 < cost.reader_cpu_s < cost.duration_s


@pytest.mark.parametrize("ending", ["exit 3", "kill -9 $$"], ids=["exits", "is killed"])
@pytest.mark.parametrize("line", ["RAM 1697/7620MB VDD_IN 4361mW/1mW", "INA3221 5ns VDD_IN 4361mW"])
def test_a_sensor_that_dies_keeps_what_came_and_tells_why(line: str, ending: str) -> None:
    script = f'for i in 1 2 3; do echo "{line}"; done; echo no more >&2; {ending}'
    with LocalSampler(100, command=("sh", "-c", script)) as sampler:
        sampler.collect(30.0)
    assert len(parse_sensor_log(sampler.lines).samples) == 3
    code = {"exit 3": "3", "kill -9 $$": "-9"}[ending]
    assert sampler.problem.startswith(f"power sampler ended (exit code {code}, last line 'no more')")


def test_a_flooding_sensor_is_ended_and_what_came_before_is_kept() -> None:
    script = 'echo "RAM 1697/7620MB VDD_IN 4361mW/1mW"; exec yes "RAM 1697/7620MB VDD_IN 9999mW/1mW"'
    with LocalSampler(1000, command=("sh", "-c", script)) as sampler:
        sampler.collect(30.0)
    assert "prints more than lines of tegrastats every 1000 ms" in sampler.problem
    assert len(sampler.lines) < 10_000


def test_a_simulated_tegrastats_is_sampled_the_same_way() -> None:
    with LocalSampler(20, command=SIMULATOR) as sampler:
        while len(sampler.lines) < 3:
            sampler.collect(0.1)
            assert sampler.problem == ""
    assert all(sample.is_simulated for sample in parse_sensor_log(sampler.lines).samples)


def test_another_root_never_takes_the_tegrastats_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnergyError, match="this machine has no sensor"):
        find_sensor(tmp_path)
