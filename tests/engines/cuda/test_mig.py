"""Which part of a divided GPU a process gets. No test has run on one: formats are those of NVIDIA's pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engines.test_doctor import BOARDS, copy, look

import devit_engines.board
from devit_engines.board import Board, detect_board
from devit_engines.cuda.mig import UNKNOWN, chosen_instance, count_instances, list_gpus

TREE = BOARDS / "agx-thor-jp7.2.1-mig"
BIG, SMALL = "MIG-0c757cd7-e942-5726-a0b8-0e8fb7067135", "MIG-1b2c3d4e-0000-5000-8000-000000000001"
LISTING = f"""GPU 0: NVIDIA Thor  (UUID: 54d0709b-558d-5a59-9c65-0c5fc14a21a4)
  MIG 2g.0gb      Device  0: (UUID: {BIG})
  MIG 1g.0gb      Device  1: (UUID: {SMALL})
"""


@pytest.mark.parametrize(
    ("visible", "instance"),
    [
        ("", "MIG 2g.0gb"),
        ("0", "MIG 2g.0gb"),
        (BIG, "MIG 2g.0gb"),
        (SMALL, "MIG 1g.0gb"),
        (f" {SMALL},{BIG}", "MIG 1g.0gb"),
        ("MIG-1b2c", "MIG 1g.0gb"),
        ("MIG-", UNKNOWN),
        ("MIG-7777", UNKNOWN),
        ("1", UNKNOWN),
        ("-1", UNKNOWN),
        ("MIG-GPU-54d0709b-558d-5a59-9c65-0c5fc14a21a4/2/0", UNKNOWN),
    ],
)
def test_a_process_gets_the_instance_that_it_names_or_the_first(visible: str, instance: str) -> None:
    """MIG user guide, "CUDA Device Enumeration": CUDA sees one instance, the first of those that are visible.

    CUDA C++ programming guide, "CUDA Environment Variables": the start of a UUID will do. The listing is made after
    those of Thors in NVIDIA/go-nvlib (first line) and in public scripts, which look for "MIG 1g.0gb" and its UUID.
    """
    assert chosen_instance(LISTING, visible) == instance


@pytest.mark.parametrize(
    "listing", ["", "GPU 0: NVIDIA Thor (UUID: GPU-4c8d)\n", "No devices found.\n", "\x00\n  MIG\n"]
)
def test_a_listing_without_instances_gives_none(listing: str) -> None:
    assert chosen_instance(listing, "") == UNKNOWN


def test_names_of_profiles_are_kept_as_they_are() -> None:
    """Jetson Linux r39.2 developer guide, "Multi-Instance GPU": profiles 78 and 83, with media or graphics."""
    listing = LISTING.replace("1g.0gb", "1g.0gb+me").replace("2g.0gb", "2g.0gb+gfx")
    assert (chosen_instance(listing, SMALL), chosen_instance(listing, "")) == ("MIG 1g.0gb+me", "MIG 2g.0gb+gfx")


def test_instances_are_counted_by_the_folders_of_the_driver(tmp_path: Path) -> None:
    """MIG user guide, "Device Nodes and Capabilities": /proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access."""
    assert (count_instances(TREE), count_instances(BOARDS / "agx-thor-jp7.0")) == (2, 0)
    (tmp_path / "proc/driver/nvidia/capabilities/mig").mkdir(parents=True)  # is there on every GPU that can be divided
    assert count_instances(tmp_path) == 0


def test_nvidia_smi_is_asked_for_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = -L ] && cat <<'END'\n{LISTING}END\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert list_gpus() == ""  # as it may not be run
    program.chmod(0o700)
    assert chosen_instance(list_gpus(), SMALL) == "MIG 1g.0gb"


def test_an_engine_of_a_part_has_another_key_than_one_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devit_engines.board, "ROOT", TREE)
    monkeypatch.setattr(devit_engines.board, "list_gpus", lambda: LISTING)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", SMALL)
    small = detect_board(TREE)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    big = detect_board(TREE)
    whole = Board(big.name, big.compute_capability, big.l4t)
    assert [board.device_name for board in (small, big, whole)] == [
        "NVIDIA Jetson AGX Thor Developer Kit, MIG 1g.0gb",
        "NVIDIA Jetson AGX Thor Developer Kit, MIG 2g.0gb",
        "NVIDIA Jetson AGX Thor Developer Kit",
    ]
    assert small.name == big.name == "NVIDIA Jetson AGX Thor Developer Kit"
    found = look(TREE)["MIG"]
    assert (found.state, found.found) == (
        "good",
        "2 instances, 2g.0gb for this process; engines are built for that part",
    )


def test_a_disk_of_another_machine_does_not_get_this_ones_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devit_engines.board, "list_gpus", lambda: LISTING)
    assert detect_board(TREE).gpu_instance == UNKNOWN


def test_the_doctor_warns_where_the_instance_is_unknown() -> None:
    found = look(TREE)
    assert found["MIG"].state == "warning"
    assert found["MIG"].found == "2 instances, and unknown which one this process gets"
    assert "nvidia-smi -L" in str(found["MIG"].cure)
    assert found["engines"].state == "good"


def test_mig_is_a_matter_of_thor(tmp_path: Path) -> None:
    """MIG user guide, "Supported MIG Profiles": Thor alone of the Jetsons; Orin keeps the driver nvgpu."""
    assert look(BOARDS / "agx-thor-jp7.0")["MIG"].found == "no instances: the GPU is whole, unless its MIG mode is on"
    for tree in ("agx-orin-jp7.2", "laptop"):
        assert "MIG" not in look(copy(tree, tmp_path))
