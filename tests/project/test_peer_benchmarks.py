"""The comparison with other servers measures what it says. How fast anything was is never judged here."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers import host, load, run
from benchmarks.peers.figures import LATENCY, RATE, rows
from benchmarks.peers.host import Host, marked
from benchmarks.peers.peer import Peer, Reply
from benchmarks.peers.tcp import Tcp
from benchmarks.peers.work import NULL_CLASSES, Work, null_work

from devit_contract.arrays import UInt8Array

ROOT = Path(__file__).parents[2]


class Immediate(Peer):
    """Answers within the process, some calls late."""

    name = "immediate"
    late_s: dict[int, float] = {}  # noqa: RUF012 - a test replaces it

    def start(self, stack: ExitStack) -> None:
        self.waiting: deque[int] = deque()
        stack.callback(self.waiting.clear)

    def ask(self, image: UInt8Array) -> Reply:
        return Reply(np.full(NULL_CLASSES, image.mean(), np.float32), 1)

    def submit(self, image: UInt8Array, number: int) -> None:
        time.sleep(self.late_s.get(number, 0.0))
        self.waiting.append(number)

    def collect(self, timeout_s: float) -> list[int]:
        if not self.waiting:
            time.sleep(timeout_s)
        found, self.waiting = list(self.waiting), deque()
        return found


class Leaky(Immediate):
    """Leaves a process behind, in a session of its own."""

    def start(self, stack: ExitStack) -> None:
        super().start(stack)
        subprocess.Popen(["sleep", "1000"], start_new_session=True)


class Broken(Immediate):
    """Does not start."""

    name = "broken"
    needs = ("no_such_package",)

    def start(self, stack: ExitStack) -> None:
        raise ValueError("no port")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return null_work(1, tmp_path)


def test_a_request_that_waits_because_an_earlier_one_stalled_counts_its_wait(work: Work) -> None:
    with Immediate(work) as peer:
        peer.late_s = {0: 0.2}
        taken_us = load.by_chance(peer, 0.15, rate=200.0, seed=1)
    rng = np.random.default_rng(1)
    planned_s = np.cumsum(rng.exponential(1 / 200, rng.poisson(30)))
    assert len(taken_us) == len(planned_s)
    stalled = planned_s < planned_s[0] + 0.2
    waited_s = planned_s[0] + 0.2 - planned_s[stalled]
    assert (taken_us[stalled] >= waited_s * 1e6).all()


def test_a_saturated_side_leaves_no_request_behind(work: Work) -> None:
    with Immediate(work) as peer:
        (rate,) = load.saturated(peer, 0.05, in_flight=5)
        assert rate > 0
        assert not peer.waiting


def test_each_side_is_held_against_ours_and_ours_against_the_bare_cell() -> None:
    times = {"devit": 10.0, "bare cell": 5.0, "grpcio unary": 39.0, "LitServe": 90.0}
    blocks = {side: [np.full(4, us), np.full(4, us)] for side, us in times.items()}
    found = {row.side: row for row in rows("null cell of 4", "us", blocks, LATENCY)}
    assert {side: (row.ratio, row.against, row.wanted, row.holds) for side, row in found.items()} == {
        "devit": (2.0, "bare cell", "<= 2.5 x", True),
        "bare cell": (0.5, "devit", "", None),
        "grpcio unary": (3.9, "devit", ">= 4 x", False),
        "LitServe": (9.0, "devit", ">= 8 x", True),
    }
    assert found["LitServe"].p50_interval == (90.0, 90.0)
    rates = {"devit": [np.array([1000.0])] * 3, "Ray Serve": [np.array([260.0])] * 3}
    ours, theirs = rows("saturated", "1/s", rates, RATE, ", in turns with Ray Serve")
    assert (ours.figure, ours.ratio, ours.p99) == ("saturated, in turns with Ray Serve", None, None)
    assert (theirs.figure, theirs.ratio, theirs.wanted, theirs.holds) == ("saturated", 0.26, "<= 0.25 x", False)


def test_a_side_that_gives_another_answer_is_refused(work: Work) -> None:
    right = work.expected(work.images()[:2], None, [1, 1])
    run.check(Immediate, work, [Reply(logits, 1) for logits in right])
    wrong = right[1] + np.float32(0.01)
    with pytest.raises(SystemExit, match=r"^immediate: expected .* to image 1, found one that is 0\.01 off$"):
        run.check(Immediate, work, [Reply(right[0], 1), Reply(wrong, 1)])
    with pytest.raises(SystemExit, match=r"to image 0, found one that is nan off$"):
        run.check(Immediate, work, [Reply(right[0] * np.float32("nan"), 1)])
    with pytest.raises(SystemExit, match=r"to image 0, found one that is inf off$"):
        run.check(Immediate, work, [Reply(right[0][:-1], 1)])


def test_no_process_of_a_side_outlives_it(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LEAVE_S", 0.1)
    with Host(Leaky, work) as side:
        assert side.run(partial(load.one_at_a_time, duration_s=0.01), 30.0).min() > 0
        assert len(marked(side.mark)) == 1
    assert marked(side.mark) == []


def test_a_side_that_does_not_start_is_told_in_one_line(work: Work) -> None:
    assert Broken.missing() == "not measured: broken needs no_such_package: run make bench, which installs it"
    with pytest.raises(SystemExit, match=r"^broken: ValueError: no port$"):
        Host(Broken, work)


def test_where_one_side_does_not_start_the_others_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "needs", ())
    monkeypatch.setattr(run, "GROUPS", ((Broken, Immediate),))
    with pytest.raises(SystemExit, match=r"^broken: ValueError: no port$"):
        run.run(0.1, ["null"], [1], ["broken", "immediate"], all_peers=True)
    assert multiprocessing.active_children() == []


def test_a_peer_that_is_not_installed_is_left_out_or_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "GROUPS", ((Broken,),))
    found = run.run(0.1, ["null"], [1], ["broken"], all_peers=False)
    assert found.settings["broken"] == Broken.missing()
    assert Broken.missing() in capsys.readouterr().err
    with pytest.raises(SystemExit, match="expected all peers"):
        run.run(0.1, ["null"], [1], ["broken"], all_peers=True)


def test_what_the_benchmarks_install_changes_no_version_of_the_project() -> None:
    def names(file: str, wanted: Callable[[str], bool] = bool) -> set[str]:
        lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
        return {line.split("==")[0].lower().replace("_", "-") for line in lines if wanted(line)}

    pinned = names("benchmarks/requirements.txt")
    assert {"grpcio", "litserve", "ray[serve]"} <= pinned
    assert pinned & names("constraints.txt") <= {"mlcommons-loadgen"}


@pytest.mark.nightly(part="endurance")
def test_our_cell_takes_turns_with_raw_sockets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.peers.run", "--duration", "0.1", "--models", "real", "--devices", "2"]
    command += ["--sides", "devit", "bare cell", Tcp.name, "one model, HTTP", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures = {row["figure"] for row in found["rows"]}
    assert len(figures) == 5
    assert len(found["rows"]) == 5 * 4
    assert all(row["p50"] > 0 and row["p50_interval"][0] <= row["p50_interval"][1] for row in found["rows"])
