"""A client with a right key asks without end and never reads: its link breaks off in full flow, again and again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.network.conftest import TINY
from tests.network.hostile import MIB, bounded_memory

from devit_pipeline.local_cell import LocalCell, LocalDevice

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

DURATION_S = 20
ROOT = Path(__file__).parents[2]


def test_a_client_that_asks_and_never_listens_does_not_end_the_node(tmp_path: Path) -> None:
    """Libzmq 4.3.5 aborts where a heartbeat falls due on a link that broke off while its input was stopped."""
    devices = [LocalDevice(f"jetson{index + 1}", index, engine="null") for index in range(2)]
    with LocalCell(TINY, tmp_path / "cell", devices) as cell:
        node = cell.pid("node")
        command = [sys.executable, "-m", "tests.network.deaf_client", str(cell.folder), str(DURATION_S)]
        with bounded_memory(node, 32 * MIB, "a deaf client"):
            asked = subprocess.run(
                ["nice", "-n", "19", *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
            )
            print(f"questions, links: {asked.stdout}")
            is_alive = Path(f"/proc/{node}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
            assert is_alive, cell.log_path("node").read_text()
        with cell.client() as client:
            assert [device.state for device in client.status().devices] == ["ready", "ready"]
