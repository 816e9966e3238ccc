"""Throttle alerts and caps on clocks, read below the folders of constructed boards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from devit_contract.throttling import highest_clocks_mhz, throttle_alerts

BOARDS = Path(__file__).parents[1] / "data" / "boards"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """A board that may be changed; its fan runs."""
    shutil.copytree(BOARDS / "orin-nano-jp6.2/sys", tmp_path / "sys", symlinks=True)
    return tmp_path


def set_state(root: Path, kind: str, state: str) -> None:
    (found,) = (path for path in root.glob("sys/class/thermal/*/type") if path.read_text().strip() == kind)
    found.with_name("cur_state").write_text(f"{state}\n")


def test_only_throttle_alerts_slow_a_board_down(nano: Path) -> None:
    assert throttle_alerts(nano) == 0
    set_state(nano, "hot-surface-alert", "1")
    set_state(nano, "pwm-fan", "3")
    assert throttle_alerts(nano) == 0
    set_state(nano, "gpu-throttle-alert", "1")
    set_state(nano, "cpu-throttle-alert", "2")
    assert throttle_alerts(nano) == 2
    set_state(nano, "cpu-throttle-alert", "")  # the driver does not answer
    assert throttle_alerts(nano) == 1


def test_boards_without_alerts_are_unknown_and_not_cool() -> None:
    assert throttle_alerts(BOARDS / "laptop") is None
    assert throttle_alerts(BOARDS / "agx-orin-jp6.0") is None


def test_of_several_clusters_the_slowest_counts(nano: Path) -> None:
    before = highest_clocks_mhz(nano)
    assert before.keys() == {"GPU", "CPU"}
    (nano / "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq").write_text("729600\n")
    assert highest_clocks_mhz(nano) == before | {"CPU": 730}
    assert highest_clocks_mhz(BOARDS / "laptop").keys() <= {"CPU"}
