"""``devit pair`` and ``devit join`` as processes: what they print, how they end, and a device that then serves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.fusion.pairing.hosted import Joiner, write_fleet
from tests.support.cell import TINY, tiny_devices

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.codec import State
from devit_contract.wire.pairing import Kind
from devit_pipeline.local_cell import LocalCell

DEVIT = [sys.executable, "-c", "from devit_pipeline.entry import devit; devit()"]


class Pairing:
    """A process ``devit pair`` and what it has shown."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        shown = json.loads(process.stdout.readline())
        self.code, self.address, self.line = shown["code"], shown["address"], shown["run"]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def pairing(fleet: Path, bundle: Path, *more: str) -> Iterator[Pairing]:
    """Run ``devit pair`` while the block runs."""
    command = [*DEVIT, "pair", "--fleet", str(fleet), "--bundle", str(bundle), "--port", "0", "--json", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Pairing(process)
    finally:
        process.kill()
        process.communicate()


def join(line: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Type the line that the node shows."""
    command = [*DEVIT, *line.split()[1:], "--dir", str(folder), "--store", str(folder / "store"), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_two_commands_end_with_the_next_step_and_no_secret_in_any_output(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path)
    with pairing(fleet, TINY) as running:
        assert running.line == f"devit join {running.address} {running.code}"
        wrong = join(f"devit join {running.address} 000-000", tmp_path / "jetson2", "--name", "jetson2")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr.splitlines()[-1].endswith("the code is wrong: compare it with what devit pair shows there")
        done = join(running.line, tmp_path / "jetson2", "--name", "jetson2")
        code, out, log = running.end()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "jetson2: submodel 1, engine fp32 of submodel 1 of tiny, built",
        f"next: edge-agent --config {tmp_path}/jetson2/agent.toml",
    ]
    assert code == 0
    assert json.loads(out) == {"name": "jetson2", "submodel": 1, "address": json.loads(out)["address"]}
    assert [re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", line) for line in log.splitlines()] == [
        "devit-pair: ADDRESS: refused: wrong code, number 1",
        "devit-pair: ADDRESS: jetson2 has the code, and becomes submodel 1",
    ]
    secret = (tmp_path / "jetson2/keys/jetson2.key_secret").read_text().strip()
    told = "".join((done.stdout, done.stderr, out, log, wrong.stderr))
    assert secret not in told
    assert running.code not in told
    assert load_fleet(fleet).find_device("jetson2").submodel == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_both_at_once_without_a_traceback(tmp_path: Path, number: signal.Signals) -> None:
    fleet = write_fleet(tmp_path)
    before = fleet.read_bytes()
    with pairing(fleet, TINY) as running:
        command = [*DEVIT, "join", running.address, running.code, "--name", "jetson2", "--dir", str(tmp_path / "two")]
        with Joiner(running.port, running.code) as stranger:
            assert stranger.greet() is Kind.HELLO  # a connection is open while it ends
            os.kill(running.process.pid, signal.SIGSTOP)  # so that the joiner waits for it
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as joiner:
                while not (tmp_path / "two/keys/jetson2.key").exists():
                    pass
                joiner.send_signal(number)
                _, told = joiner.communicate(timeout=60)
            running.process.send_signal(number)
            os.kill(running.process.pid, signal.SIGCONT)
            code, out, log = running.end()
    assert (joiner.returncode, code, out) == (130, 130, "")
    assert not [line for line in log.splitlines() if not line.endswith(": ended: the other side has ended it")]
    assert told.startswith("stopped: run devit join again")
    assert "Traceback" not in told
    assert fleet.read_bytes() == before
    assert not (tmp_path / "two/bundle").exists()


def test_what_cannot_pair_is_told_before_a_code_is_shown(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path)
    for more, told in (
        (["--bundle", str(tmp_path)], "error: .*manifest.json: cannot be read"),
        (
            ["--bundle", str(TINY), "--engines", str(tmp_path / "absent")],
            "error: .*absent: expected a store",
        ),
        (["--bundle", str(TINY), "--submodel", "7"], "error: submodel 7: the bundle has 0 to 1: choose another"),
    ):
        command = [*DEVIT, "pair", "--fleet", str(fleet), "--port", "0", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.match(told, done.stderr)


@pytest.mark.system
def test_a_device_that_has_joined_serves_in_a_real_cell(tmp_path: Path, store: Path) -> None:
    """Two commands beside a node that runs on, then the agent by the line that the second one prints."""
    (first, _) = tiny_devices(tegrastats=())
    with LocalCell(TINY, tmp_path / "cell", [first], store=store) as cell:
        with pairing(cell.fleet_path, TINY, "--engines", str(store)) as running:
            done = join(running.line, tmp_path / "jetson2", "--name", "jetson2", "--json")
            assert running.end()[0] == 0
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["submodel"], report["engine_origin"]) == (1, "fetched")
        entry = "from devit_pipeline.entry import edge_agent; edge_agent()"
        command = [sys.executable, "-c", entry, "--config", report["config"], "--stop-with-stdin"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
            assert agent.stdout is not None
            assert json.loads(agent.stdout.readline())["ready"] is True
            golden = Bundle(TINY).golden()
            with cell.client() as client:
                while True:  # until the node, which runs on, has taken it in
                    answer = client.classify(golden["images"][0])
                    if answer.state is State.FULL:
                        break
            np.testing.assert_allclose(answer.logits, golden["logits"][0], rtol=1e-3, atol=1e-3)
            agent.terminate()
            agent.wait(60)
