"""What the doctor says of a board's power modes, over-current events, memory and desktop."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.engines.test_doctor import BOARDS, copy, look

COUNTERS = "sys/class/hwmon/hwmon3"
CACHES = "sudo sync && sudo sysctl -w vm.drop_caches=3"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return copy("orin-nano-jp6.2", tmp_path)


def set_memory(root: Path, available_kb: int) -> None:
    (root / "proc/meminfo").write_text(f"MemTotal: 7801856 kB\nMemAvailable: {available_kb} kB\n")


def test_the_modes_of_a_super_board_are_told_with_what_they_cost() -> None:
    """Sources: mode names are caps of clocks, NVIDIA/skills jetson-customize-nvpmodel and ARK ark_jetson_kernel PR 116.

    25W against MAXN_SUPER: smolhub.com jetson-nano-super-benchmark, 8 language models, raw tegrastats public.
    """
    assert look(BOARDS / "orin-nano-jp6.2")["power modes"].found == (
        "0 15W, 1 25W, 2 MAXN_SUPER, 3 7W, by nvpmodel_p3767_0003_super.conf; a name caps clocks, not watts; "
        "25W did 8 to 35 % more work per joule than MAXN_SUPER"
    )


def test_the_default_mode_of_thor_is_120_w() -> None:
    """Source: jetson_stats issue 820, a Thor's own files: mode 1 = 120W. The comparison of modes is Orin Nano's."""
    found = look(BOARDS / "agx-thor-jp7.0")
    assert found["power mode"].found == "120W (mode 1)"
    assert found["power modes"].found == (
        "0 MAXN, 1 120W, 2 90W, 3 70W, by nvpmodel.conf; a name caps clocks, not watts"
    )


def test_a_board_without_super_modes_is_told_how_it_would_get_them(nano: Path) -> None:
    """Source: NVIDIA/skills jetson-customize-nvpmodel: at each boot the device tree decides which file is linked."""
    folder = nano / "etc/nvpmodel"
    shutil.copy(folder / "nvpmodel_p3767_0003_super.conf", folder / "nvpmodel_p3767_0003.conf")
    (nano / "etc/nvpmodel.conf").unlink()
    (nano / "etc/nvpmodel.conf").symlink_to("/etc/nvpmodel/nvpmodel_p3767_0003.conf")
    assert "Super modes need a board flashed with its Super configuration" in look(nano)["power modes"].found


def test_over_current_events_are_told_with_their_cure(nano: Path) -> None:
    """Source: NVIDIA's r36.5.2 PlatformPowerAndPerformance: oc1 under-voltage, oc2 average, oc3 instantaneous."""
    found = look(nano)["over-current"]
    assert (found.found, found.state) == ("27390 instantaneous over-current since the boot", "warning")
    assert "sudo nvpmodel -m NUMBER" in str(found.cure)
    (nano / COUNTERS / "oc1_event_cnt").write_text("2\n")
    assert "supply and a cable" in str(look(nano)["over-current"].cure)
    for number in (1, 3):
        (nano / COUNTERS / f"oc{number}_event_cnt").write_text("0\n")
    assert (look(nano)["over-current"].found, look(nano)["over-current"].state) == ("none since the boot", "good")
    shutil.rmtree(nano / COUNTERS)
    assert "over-current" not in look(nano)


def test_where_memory_is_short_caches_are_dropped_first_below_l4t_39(nano: Path) -> None:
    """Source: NVIDIA/skills jetson-memory-audit: below JetPack 7.2 an ended CUDA process leaves its memory in use."""
    assert str(look(nano)["memory"].cure).startswith(f"free 2 GB for TensorRT's builder: run {CACHES}, ")
    release = nano / "etc/nv_tegra_release"
    release.write_text(release.read_text().replace("R36 (release), REVISION: 4.3", "R39 (release), REVISION: 2.0"))
    assert CACHES not in str(look(nano)["memory"].cure)
    assert look(nano)["memory"].state == "warning"


def test_a_desktop_is_counted_by_its_parts_and_is_a_warning_where_memory_is_short(nano: Path) -> None:
    """Source: NVIDIA/skills jetson-headless-mode: 865 MB, about 200 MB, 30 MB and 8 MB."""
    found = look(nano)["desktop"]
    assert found.found == (
        "graphical.target up to 865 MB, gdm.service up to 200 MB, snapd.service up to 30 MB, "
        "packagekit.service up to 8 MB"
    )
    assert "systemctl set-default multi-user.target" in str(found.cure)
    assert "frees up to 1103 MB" in str(found.cure)
    set_memory(nano, 4_000_000)
    assert look(nano)["desktop"].state == "good"
    assert look(nano)["desktop"].found == found.found


def test_a_headless_board_hears_nothing_of_a_desktop(nano: Path) -> None:
    """Source: systemd: /etc's link to a target comes before /usr's; a service that runs has a control group."""
    (nano / "etc/systemd/system/default.target").symlink_to("/lib/systemd/system/multi-user.target")
    shutil.rmtree(nano / "sys/fs")
    assert "desktop" not in look(nano)
    (nano / "sys/fs/cgroup/system.slice/gdm.service").mkdir(parents=True)
    found = look(nano)["desktop"]
    assert found.found == "gdm.service up to 200 MB"
    assert str(found.cure).startswith("run sudo systemctl disable --now gdm.service, ")


def test_the_links_of_a_container_say_nothing_of_its_board(nano: Path) -> None:
    """Source: images of Ubuntu have a default target too, whatever runs on the host."""
    (nano / ".dockerenv").touch()
    assert "desktop" not in look(nano)


def test_the_stub_of_nvidia_smi_and_a_missing_3d_scaling_change_nothing(nano: Path) -> None:
    """Source: jetson_stats caffd05d: on JetPack 7.2 Orin nvidia-smi is a stub, and enable_3d_scaling is gone."""
    before = look(nano)
    (nano / "usr/sbin").mkdir()
    (nano / "usr/sbin/nvidia-smi").write_text("Orin (nvgpu)")
    (nano / "sys/devices/platform/17000000.gpu").mkdir(parents=True)
    (nano / "sys/devices/platform/17000000.gpu/enable_3d_scaling").write_text("1\n")
    assert look(nano) == before
