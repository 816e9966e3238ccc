"""What a machine's own files say of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from devit_contract.errors import InputError
from devit_contract.machine import (
    OverCurrentEvents,
    available_bytes,
    board_compatible,
    board_model,
    clocks,
    highest_clocks_mhz,
    memory_bytes,
    more_memory,
    over_current_events,
    power_mode,
    power_modes,
    throttle_alerts,
)

BOARDS = Path(__file__).parents[1] / "data" / "boards"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ("agx-orin-jp6.0", "MAXN (mode 0)"),
        ("orin-nano-jp6.2", "MAXN_SUPER (mode 2)"),
        ("agx-orin-jp7.2", "MODE_30W (mode 2, by default)"),
        ("orin-nx-jp6.1-container", "None"),
        ("laptop", "None"),
    ],
)
def test_the_power_mode_has_its_boards_own_name(tree: str, text: str) -> None:
    assert str(power_mode(BOARDS / tree)) == text


def test_a_power_mode_that_the_configuration_does_not_name_keeps_its_number(tmp_path: Path) -> None:
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0007\n")
    assert str(power_mode(tmp_path)) == "mode 7"


@pytest.mark.parametrize(
    ("tree", "texts", "locked"),
    [
        ("agx-orin-jp6.0", ["GPU 1300 MHz", "CPU 2202 MHz"], True),
        ("orin-nano-jp6.2", ["GPU 306 to 1020 MHz", "CPU 730 to 1728 MHz"], False),
        ("agx-thor-jp7.0", ["GPU 1575 MHz", "CPU 2601 MHz"], True),
        ("nano-jp4.6", ["GPU 922 MHz", "CPU 1479 MHz"], True),
        ("xavier-nx-jp5.1", ["GPU 115 to 1109 MHz", "CPU 1190 to 1421 MHz"], False),
    ],
)
def test_clocks_are_locked_where_the_kernel_may_set_one_value_only(tree: str, texts: list[str], locked: bool) -> None:
    found = clocks(BOARDS / tree)
    assert [str(clock) for clock in found] == texts
    assert all(clock.is_locked for clock in found) == locked


def test_a_clock_without_a_number_is_no_clock(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/devfreq/17000000.gpu/min_freq", "<unsupported>\n")
    write(tmp_path, "sys/class/devfreq/17000000.gpu/max_freq", "1020000000\n")
    write(tmp_path, "sys/class/devfreq/15340000.vic/min_freq", "1\n")
    write(tmp_path, "sys/class/devfreq/15340000.vic/max_freq", "2\n")
    assert clocks(tmp_path) == []


def test_a_board_is_called_what_its_device_tree_says(tmp_path: Path) -> None:
    assert board_model(tmp_path) == ""
    write(tmp_path, "sys/firmware/devicetree/base/model", "Raspberry Pi 5  Model B\0")
    assert board_model(tmp_path) == "Raspberry Pi 5 Model B"
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    assert board_model(tmp_path) == "NVIDIA Jetson Orin Nano Developer Kit"


def test_a_tree_is_compatible_with_a_board_a_module_and_a_chip(tmp_path: Path) -> None:
    assert board_compatible(tmp_path) == ()
    names = ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
    assert board_compatible(BOARDS / "orin-nano-jp6.2") == names


def test_memory_is_in_bytes_and_unknown_memory_is_an_error(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path) == {}
    with pytest.raises(InputError, match="no line MemAvailable"):
        available_bytes(tmp_path)
    write(tmp_path, "proc/meminfo", "MemTotal:        8000 kB\nMemAvailable:    20480 kB\nHugePages_Total:       0\n")
    assert memory_bytes(tmp_path) == {"MemTotal": 8000 << 10, "MemAvailable": 20 << 20}
    assert available_bytes(tmp_path) == 20 << 20


@pytest.mark.parametrize(
    ("release", "is_kept"),
    [
        ("R36 (release), REVISION: 4.7", True),
        ("R38 (release), REVISION: 4.0", True),
        ("R39 (release), REVISION: 0", False),
    ],
)
def test_below_l4t_39_caches_are_dropped_first(tmp_path: Path, release: str, is_kept: bool) -> None:
    """Source: NVIDIA/skills, jetson-memory-audit: the driver's pool keeps memory of ended CUDA processes there."""
    write(tmp_path, "etc/nv_tegra_release", f"# {release}, GCID: 1, BOARD: generic\n")
    caches = "run sudo sync && sudo sysctl -w vm.drop_caches=3, "
    assert more_memory(tmp_path).startswith(caches) == is_kept
    assert more_memory(tmp_path).endswith("close other programs, or add swap")


def test_a_machine_that_is_no_jetson_has_no_memory_of_ended_cuda_programs() -> None:
    """Source: as above; a discrete GPU has memory of its own."""
    assert more_memory(BOARDS / "laptop") == "close other programs, or add swap"


@pytest.mark.parametrize(
    ("tree", "counts"),
    [
        ("orin-nano-jp6.2", (0, 0, 27390)),
        ("agx-thor-jp7.0", (0, 0, 179)),
        ("agx-orin-jp7.2", (0, 15, 37)),
    ],
)
def test_over_current_events_are_those_of_the_chip_with_that_name(tree: str, counts: tuple[int, int, int]) -> None:
    """Source: hwmon ``soctherm_oc`` of NVIDIA's kernel driver tegra23x-oc-event, whose files any user may read.

    The counts are those that owners of an Orin NX, a Thor T5000 and an Orin have published.
    """
    assert over_current_events(BOARDS / tree) == OverCurrentEvents(*counts)


@pytest.mark.parametrize("text", ["", "-1\n", "x\n"])
def test_events_that_the_kernel_does_not_tell_are_unknown_and_not_zero(tmp_path: Path, text: str) -> None:
    """Source: the driver gives EINVAL or ENODATA where its firmware does not answer."""
    assert over_current_events(tmp_path) is None
    write(tmp_path, "sys/class/hwmon/hwmon0/name", "pwmfan\n")
    write(tmp_path, "sys/class/hwmon/hwmon0/oc1_event_cnt", "5\n")
    write(tmp_path, "sys/class/hwmon/hwmon4/name", "soctherm_oc\n")
    write(tmp_path, "sys/class/hwmon/hwmon4/oc1_event_cnt", "1\n")
    write(tmp_path, "sys/class/hwmon/hwmon4/oc2_event_cnt", text)
    write(tmp_path, "sys/class/hwmon/hwmon4/oc3_event_cnt", "3\n")
    assert over_current_events(tmp_path) is None
    write(tmp_path, "sys/class/hwmon/hwmon4/oc2_event_cnt", "0\n")
    assert over_current_events(tmp_path) == OverCurrentEvents(1, 0, 3)


def test_events_since_an_earlier_count_are_unknown_across_a_reboot() -> None:
    """Source: the counters run since the boot and are never cleared."""
    before, after = OverCurrentEvents(1, 2, 3), OverCurrentEvents(1, 4, 40)
    assert after.since(before) == OverCurrentEvents(0, 2, 37)
    assert before.since(after) is None
    assert after.since(None) is None
    assert (str(after.since(before)), str(OverCurrentEvents())) == (
        "2 average over-current, 37 instantaneous over-current",
        "none",
    )
    assert OverCurrentEvents(1, 2, 3).total == 6


def test_the_power_modes_are_those_of_the_file_that_is_linked() -> None:
    """Source: NVIDIA/skills jetson-customize-nvpmodel: ``/etc/nvpmodel.conf`` is an absolute link to a SKU's file."""
    found = power_modes(BOARDS / "orin-nano-jp6.2")
    assert found is not None
    assert found.configuration == "nvpmodel_p3767_0003_super.conf"
    assert [(mode.number, mode.name) for mode in found.offered] == [
        (0, "15W"),
        (1, "25W"),
        (2, "MAXN_SUPER"),
        (3, "7W"),
    ]
    assert not found.has_super_beside
    assert power_modes(BOARDS / "orin-nx-jp6.1-container") is None


@pytest.mark.parametrize("link", ["/etc/nvpmodel/nvpmodel_p3767_0003.conf", "nvpmodel/nvpmodel_p3767_0003.conf"])
def test_super_modes_that_are_not_linked_are_told(tmp_path: Path, link: str) -> None:
    """Source: ARK ark_jetson_kernel PR 116, NVIDIA/skills: files with and without Super modes lie side by side."""
    write(tmp_path, "etc/nvpmodel/nvpmodel_p3767_0003.conf", "< POWER_MODEL ID=0 NAME=15W >\n")
    (tmp_path / "etc/nvpmodel.conf").symlink_to(link)
    found = power_modes(tmp_path)
    assert found is not None
    assert (found.configuration, found.has_super_beside) == ("nvpmodel_p3767_0003.conf", False)
    write(tmp_path, "etc/nvpmodel/nvpmodel_p3767_0003_super.conf", "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
    found = power_modes(tmp_path)
    assert found is not None
    assert found.has_super_beside
    assert str(power_mode(tmp_path)) == "None"  # no mode was ever set, and no default is named


def test_a_gpu_clock_that_appears_late_is_found_at_the_next_look(tmp_path: Path) -> None:
    """Source: jetson_stats bfa68481: on JetPack 7 Orin the devfreq node may appear after services have started."""
    assert clocks(tmp_path) == []
    write(tmp_path, "sys/class/devfreq/17000000.gpu/min_freq", "306000000\n")
    write(tmp_path, "sys/class/devfreq/17000000.gpu/max_freq", "1300500000\n")
    assert [str(clock) for clock in clocks(tmp_path)] == ["GPU 306 to 1300 MHz"]


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
