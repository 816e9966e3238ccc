"""What devit install-service writes, for installations and devices of several kinds."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from devit_contract.errors import InputError
from devit_pipeline.service import agent_files, device_nodes, fusion_files, install

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]
RELEASE = Path("/opt/devit/current/venv")
JETPACK_6 = ("nvmap", "nvhost-ctrl-gpu", "nvhost-as-gpu", "nvgpu/igpu0/ctrl", "nvgpu/igpu0/as", "dri/renderD128")
JETPACK_7 = ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1", "host1x-fence")
CAMERAS = ("video0", "media0", "v4l-subdev3", "capture-vi-channel12", "capture-isp-channel0")
OTHERS = ("null", "sda", "nvme0n1", "tty1", "dri/card0", "mapper/control", "i2c-1")
DEVICES_CSV = """\
dev, /dev/nvmap
dev, /dev/nvhost-nvdec
dev,/dev/fb0
dev, /dev/host1x-fence
dev, /dev/capture-vi-channel3
dev, /dev/media0
dev, /dev/nvhost-*
dir, /dev/snd
lib, /usr/lib/libcuda.so
dev, /etc/passwd
"""


def installed(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*DEVIT, "install-service", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def board(root: Path, *nodes: str) -> Path:
    """Make a device's ``/dev``, of plain files."""
    for node in nodes:
        (root / "dev" / node).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / node).touch()
    return root


def test_the_files_are_written_once_and_then_left_alone(tmp_path: Path) -> None:
    wanted = agent_files(RELEASE, tmp_path)
    assert [str(each.path.relative_to(tmp_path)) for each in install(wanted, tmp_path) if each.was_changed] == [
        "etc/systemd/system/edge-agent@.service",
        "etc/systemd/system/edge-agent@.service.d/10-devices.conf",
        "etc/sysusers.d/devit.conf",
        "etc/tmpfiles.d/devit.conf",
    ]
    before = [path.stat() for path in sorted(tmp_path.rglob("*"))]
    assert {stat.S_IMODE(found.st_mode) for found in before if stat.S_ISREG(found.st_mode)} == {0o644}
    assert not any(each.was_changed for each in install(wanted, tmp_path))
    assert [path.stat() for path in sorted(tmp_path.rglob("*"))] == before
    (tmp_path / "etc/tmpfiles.d/devit.conf").write_text("changed by hand")
    changed = [each.path.name for each in install(wanted, tmp_path) if each.was_changed]
    assert changed == ["devit.conf"]
    assert (tmp_path / "etc/tmpfiles.d/devit.conf").read_text() == wanted[3].content


def test_the_shipped_units_are_those_of_the_release_that_ansible_makes(tmp_path: Path) -> None:
    bundle = RELEASE.with_name("bundle")
    agent, node = agent_files(RELEASE, tmp_path)[0], fusion_files(RELEASE, bundle)[0]
    assert agent.content == files("devit_edge_agent").joinpath("edge-agent@.service").read_text()
    assert node.content == files("devit_fusion").joinpath("fusion-node.service").read_text()
    assert "\nLimitNOFILE=16384\n" in node.content
    assert "\nExecStart=/opt/devit/current/venv/bin/edge-agent --config /etc/devit/%i.toml\n" in agent.content


def test_another_installation_and_bundle_stand_in_the_unit(tmp_path: Path) -> None:
    agent = agent_files(Path("/srv/devit"), tmp_path)[0].content
    node = fusion_files(Path("/srv/devit"), Path("/srv/bundle"))[0].content
    assert "\nExecStart=/srv/devit/bin/edge-agent --config" in agent
    assert "\nExecStart=/srv/devit/bin/fusion-node --bundle /srv/bundle --fleet" in node
    assert "/opt/devit" not in agent + node
    assert "\nProtectHome=yes\n" in agent


def test_an_installation_in_a_home_is_all_that_the_service_sees_of_that_home(tmp_path: Path) -> None:
    """A user has just run pip install: homes are closed to the service's user, and hidden from it."""
    unit = fusion_files(Path("/home/eve/venv"), Path("/home/eve/bundle"))[0].content
    assert "\nProtectHome=tmpfs\nBindReadOnlyPaths=/home/eve/venv\nBindReadOnlyPaths=/home/eve/bundle\n" in unit
    assert "ProtectHome=yes" not in unit
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/pyvenv.cfg").write_text("home = /home/eve/.pyenv/versions/3.10.13/bin\nversion = 3.10.13\n")
    unit = agent_files(tmp_path / "venv", tmp_path)[0].content
    assert "\nProtectHome=tmpfs\nBindReadOnlyPaths=/home/eve/.pyenv/versions/3.10.13\n" in unit


@pytest.mark.parametrize("prefix", ["venv", "/srv/my venv", "/srv/%i", '/srv/"'])
def test_a_path_that_means_something_else_in_a_unit_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an absolute path"):
        agent_files(Path(prefix), tmp_path)


@pytest.mark.parametrize("nodes", [JETPACK_6, JETPACK_7, CAMERAS])
def test_the_drop_in_opens_the_nodes_of_gpu_and_camera_and_no_other(nodes: tuple[str, ...], tmp_path: Path) -> None:
    board(tmp_path, *nodes, *OTHERS)
    drop_in = agent_files(RELEASE, tmp_path)[1].content
    assert set(re.findall(r"^DeviceAllow=/dev/(\S+) rw$", drop_in, re.MULTILINE)) == set(nodes)
    assert "\nSupplementaryGroups=video render\n" in drop_in


def test_nodes_of_nvidias_list_for_containers_count_where_dev_is_empty_as_in_an_image(tmp_path: Path) -> None:
    csv = tmp_path / "etc/nvidia-container-runtime/host-files-for-container.d/devices.csv"
    csv.parent.mkdir(parents=True)
    csv.write_text(DEVICES_CSV)
    names = ("capture-vi-channel3", "host1x-fence", "media0", "nvhost-nvdec", "nvmap")
    assert device_nodes(tmp_path) == [Path("/dev") / name for name in names]


def test_only_an_agent_whose_source_is_a_csi_camera_follows_nvargus_daemon(tmp_path: Path) -> None:
    """Whoever stops that service, e.g. for its memory, must not stop the agents that have no use for it."""
    folder = tmp_path / "etc/devit"
    folder.mkdir(parents=True)
    for name, text in (
        ("one", 'source = "gst:csi?sensor=1"'),
        ("two", 'source = "gst:nvarguscamerasrc ! nvvidconv ! video/x-raw ?size=64x48"'),
        ("usb", 'source = "gst:v4l2"'),
        ("node-fed", ""),
        ("broken", "source = "),
        ("fleet", "[node]"),
    ):
        (folder / f"{name}.toml").write_text(text)
    found = {file.path.parent.name: file.content for file in agent_files(RELEASE, tmp_path) if "csi" in file.path.name}
    assert set(found) == {"edge-agent@one.service.d", "edge-agent@two.service.d"}
    for content in found.values():
        assert {"After=nvargus-daemon.service", "PartOf=nvargus-daemon.service"} <= set(content.splitlines())
    assert "nvargus-daemon.service" not in agent_files(RELEASE, tmp_path)[0].content


def test_an_agent_that_has_no_csi_camera_any_more_loses_its_drop_in(tmp_path: Path) -> None:
    config = tmp_path / "etc/devit/one.toml"
    config.parent.mkdir(parents=True)
    config.write_text('source = "gst:csi"')
    drop_in = tmp_path / "etc/systemd/system/edge-agent@one.service.d/20-csi.conf"
    assert installed("agent", "--root", tmp_path).returncode == 0
    assert drop_in.is_file()
    config.write_text('source = "gst:v4l2"')
    own = drop_in.with_name("override.conf")
    own.write_text("[Service]")
    assert f"removed {drop_in}" in installed("agent", "--root", tmp_path).stdout
    assert (drop_in.exists(), own.exists()) == (False, True)


def test_a_machine_without_gpu_gets_a_drop_in_that_opens_nothing(tmp_path: Path) -> None:
    board(tmp_path, *OTHERS)
    drop_in = agent_files(RELEASE, tmp_path)[1].content
    assert "DeviceAllow" not in drop_in
    assert "Neither GPU nor camera" in drop_in


def test_the_command_says_what_it_wrote_and_what_to_run_next(tmp_path: Path) -> None:
    """The unit runs the installation that the command itself is of, which is there."""
    done = installed("agent", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    unit = tmp_path / "etc/systemd/system/edge-agent@.service"
    assert f"written {unit}\n" in done.stdout
    assert "  systemctl enable --now edge-agent@NAME" in done.stdout
    program = re.search(r"^ExecStart=(\S+)", unit.read_text(), re.MULTILINE)
    assert program is not None
    assert program[1] == f"{sys.prefix}/bin/edge-agent"
    again = json.loads(installed("agent", "--root", tmp_path, "--json").stdout)
    assert [each["changed"] for each in again] == [False] * 4


def test_a_dry_run_prints_the_files_and_writes_none(tmp_path: Path) -> None:
    done = installed("fusion", "--root", tmp_path, "--prefix", RELEASE, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# /etc/systemd/system/fusion-node.service\n")
    assert files("devit_fusion").joinpath("fusion-node.service").read_text() in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_the_next_step_is_named(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(InputError, match="run it as root, or choose another --root"):
        install(fusion_files(RELEASE, Path("/srv/bundle")), tmp_path)
