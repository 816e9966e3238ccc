"""Profiles of devices: their files, runs that hold them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from msgspec import structs
from tests.profiling.plan.made_cell import made_profile

from devit_contract.errors import InputError, ManifestError
from devit_profiling.plan.device_profile import DeviceProfile, check_fits, read_profiles
from devit_profiling.record.run_folder import read_recording
from devit_profiling.report.report import write_report

if TYPE_CHECKING:
    from tests.profiling.conftest import FakeRun
else:
    FakeRun = object


def test_a_run_of_profile_gives_the_profiles_of_its_devices(fake_run: FakeRun, tmp_path: Path) -> None:
    """By its folder and by its report; with what an answer takes beyond the inference, which a bench cannot see."""
    folder = replace(fake_run, alone=True).write(tmp_path / "run")
    write_report(folder)
    found = read_profiles(folder)
    assert read_profiles(folder / "report.json") == found
    recording = read_recording(folder)
    assert [profile.device for profile in found] == [device.name for device in recording.run.devices]
    for profile, device in zip(found, recording.run.devices, strict=True):
        rows = [row for row in recording.answers if row.scenario == f"{device.name} alone" and row.window]
        times_ms = [row.devices[0].inference_us / 1e3 for row in rows]
        beyond_ms = [row.latency_ms - row.wait_us / 1e3 - row.devices[0].inference_us / 1e3 for row in rows]
        assert (profile.model, profile.inferences) == (device.submodel, len(rows))
        assert profile.p50_ms == pytest.approx(np.median(times_ms))
        assert profile.overhead_ms == pytest.approx(np.median(beyond_ms), abs=0.5)
        assert profile.idle_w is not None
        assert profile.above_idle_j is not None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": 2}, "schema"),
        ({"quantiles_ms": [3.0, 2.0]}, "expected two or more rising times"),
        ({"quantiles_ms": [1.0]}, "expected two or more rising times"),
        ({"quantiles_ms": [0.0, 0.0]}, "expected two or more rising times"),
        ({"quantiles_ms": ["slow"]}, "quantiles_ms"),
        ({"overhead_ms": -1.0}, "overhead_ms: expected 0 or more"),
        ({"not_measured": ""}, "expected both, or why not"),
        ({"speed": 1}, "speed"),
        ({"model": "teacher"}, "model"),
    ],
)
def test_a_damaged_profile_is_one_line_with_the_command(
    tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    path = tmp_path / "jetson1.json"
    plain = msgspec.to_builtins(made_profile())
    path.write_text(json.dumps(plain | change))
    with pytest.raises(ManifestError, match=problem) as refused:
        read_profiles(path)
    assert str(path) in str(refused.value)
    assert str(refused.value).endswith("measure it again with devit bench-device")
    assert "\n" not in str(refused.value)


def test_a_cut_file_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "jetson1.json"
    path.write_bytes(msgspec.json.encode(made_profile())[:-20])
    with pytest.raises(ManifestError, match=r"jetson1\.json"):
        read_profiles(path)
    with pytest.raises(InputError, match=r"nobody\.json"):
        read_profiles(tmp_path / "nobody.json")


@pytest.mark.parametrize(
    "profile",
    [structs.replace(made_profile(), macs=7), made_profile(model=2), structs.replace(made_profile(), model="baseline")],
)
def test_a_profile_of_another_bundle_is_refused(profile: DeviceProfile) -> None:
    check_fits(structs.replace(profile, model=1, macs=0), [100, 200], None)
    with pytest.raises(ManifestError, match=r"profile of dev0, model .*: expected one of this bundle"):
        check_fits(profile, [100, 200], None)
