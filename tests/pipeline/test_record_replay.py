"""A cell of processes is recorded and replayed by the command line, through a recorder that is killed."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.support.cell import TINY, tiny_devices

from devit_contract.wire.client import Answer
from devit_pipeline.local_cell import LocalCell

DEADLINE_S = 60.0
DEVIT = [sys.executable, "-c", "from devit_pipeline.entry import devit; devit()"]


def devit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEVIT, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def begun(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start ``devit record``, and wait until it does."""
    child = subprocess.Popen([*DEVIT, "record", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert child.stderr.readline().startswith("recording to")
    return child


def ask(cell: LocalCell, count: int) -> None:
    with cell.client() as client:
        for number in range(count):
            answer = client.classify(np.full((6, 8, 1), number % 256, np.uint8))
            assert isinstance(answer, Answer)


@pytest.mark.system
def test_a_recorder_that_is_killed_and_one_that_is_stopped_leave_what_replays_to_the_same_bytes(tmp_path: Path) -> None:
    out, settings = tmp_path / "recordings", f'[record]\nsocket = "{tmp_path}/record.sock"\n'
    with LocalCell(TINY, tmp_path / "cell", tiny_devices("null"), settings=settings) as cell:
        options = "--fleet", cell.fleet_path, "--out", out
        killed = begun(*options)
        ask(cell, 600)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        stopped = begun(*options, "--json")
        refused = devit("record", *options)
        assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
            1,
            "error: the node is being recorded already: stop the other devit record",
        )
        ask(cell, 200)
        stopped.send_signal(signal.SIGINT)
        printed, _ = stopped.communicate(timeout=DEADLINE_S)
        assert json.loads(printed)["requests"] == 200
        end_s = time.monotonic() + DEADLINE_S
        with cell.client() as client:
            while not any(re.match("recording stopped", event.text) for event in client.status().events[:1]):
                assert time.monotonic() < end_s
        last = begun(*options, "--json")
        ask(cell, 40)
        cell.kill("node")
        printed, _ = last.communicate(timeout=DEADLINE_S)
        assert (last.returncode, json.loads(printed)["files"]) == (0, 1)
    assert sorted(out.iterdir())[-1].stat().st_size > 1000
    sorted(out.iterdir())[-1].unlink()
    done = devit("replay", out, "--json")
    found = json.loads(done.stdout)
    assert found["compared"] == found["equal"] > 200
    assert (found["verdict"], done.returncode) == ("review", 3)  # as the killed one's file has no end
    assert "cut off or damaged behind" in found["reasons"][0]
    last = sorted(out.iterdir())[-1]
    same = devit("replay", last)
    assert same.returncode == 0
    assert "200 answers are the same bytes, 0 flip" in same.stdout
    alone = devit("replay", last, "--without", "jetson2", "--max-failed", "1", "--max-flips", "0")
    assert "partial" in alone.stdout
    print(same.stdout)


@pytest.mark.system
def test_ten_thousand_frames_replay_to_the_same_bytes(tmp_path: Path) -> None:
    """Two agents are restarted and one is killed meanwhile, so that frames end without features."""
    out, settings = tmp_path / "recordings", f'[record]\nsocket = "{tmp_path}/record.sock"\n'
    frames, image = 10_000, np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
    with LocalCell(TINY, tmp_path / "cell", tiny_devices("null"), settings=settings) as cell:
        recorder = begun("--fleet", cell.fleet_path, "--out", out)
        with cell.client() as client:
            for number, _ in enumerate(client.stream(itertools.repeat(image, frames), in_flight=4)):
                if number in (2_000, 5_000):
                    cell.kill("jetson1")
                    cell.start_agents(["jetson1"])
                elif number == 8_000:
                    cell.kill("jetson2")
        recorder.send_signal(signal.SIGINT)
        recorder.communicate(timeout=DEADLINE_S)
    done = devit("replay", out, "--json")
    found = json.loads(done.stdout)
    assert (found["compared"], found["equal"], found["verdict"]) == (frames, frames, "deploy")
    assert found["was"]["states"]["partial"] >= 1_000
    print(f"10,000 frames of {found['recorded_s']:.0f} s in {found['took_s']:.1f} s, all answers the same bytes")


@pytest.mark.parametrize(
    ("size", "expected"),
    [("10", "expected 4MB or more"), ("-5GB", "expected 4MB or more"), ("1MB", "expected 4MB or more")],
)
def test_a_ring_has_room_for_files(tmp_path: Path, size: str, expected: str) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        'schema = 2\n[node]\nendpoint = "tcp://127.0.0.1:1"\nclient_endpoint = "tcp://127.0.0.1:2"\n'
        '[[device]]\nname = "jetson0"\nsubmodel = 0\n[record]\nsocket = "nowhere.sock"\n'
    )
    done = devit("record", "--fleet", fleet, "--out", tmp_path / "out", f"--max-size={size}")
    assert done.returncode == 1
    assert expected in done.stderr


def test_a_node_that_nobody_may_record_says_what_to_write(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        'schema = 2\n[node]\nendpoint = "tcp://127.0.0.1:1"\nclient_endpoint = "tcp://127.0.0.1:2"\n'
        '[[device]]\nname = "jetson0"\nsubmodel = 0\n'
    )
    done = devit("record", "--fleet", fleet, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*: nobody may record this node: add \[record\] .*\n", done.stderr)
