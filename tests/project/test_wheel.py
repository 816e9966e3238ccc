"""What `pip install devit` brings: every module and data file, and nothing else."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = ("contract", "decompose", "export", "engines", "edge_agent", "fusion", "gateway", "profiling", "pipeline")


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PLACES],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.splitlines()
    expected = {name.partition("/")[2] for name in tracked if re.match(r"(\w+)/devit(_\1)?/", name)}
    assert found == expected
    assert "devit_pipeline/fashion_mnist/bundle/manifest.json" in found
    assert "devit_engines/selftest/device/kernel.ptx" in found
    assert "devit_pipeline/fashion_mnist/NOTICE" in found
    assert {"devit_edge_agent/edge-agent@.service", "devit_fusion/fusion-node.service"} <= found


def test_the_wheel_names_its_licence_and_its_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        commands = archive.read(entry_points).decode()
        about = archive.read(metadata).decode()
    for command in ("devit", "edge-agent", "fusion-node", "hwmon-power", "profile", "simulated-tegrastats"):
        assert f"\n{command} = " in commands
    assert "License-Expression: Apache-2.0" in about
