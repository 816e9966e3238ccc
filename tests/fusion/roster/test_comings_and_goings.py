"""Devices come and go under load, as processes on real sockets: no frame fails, and at most the changed one is missing.

``pytest -m system -rP`` of this file prints the figures.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.cell import TINY
from tests.support.starvation import Starvation

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.fleet import ClientEntry
from devit_contract.artefacts.keys import new_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError, NoAnswerError
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client
from devit_contract.wire.codec import State
from devit_contract.wire.status import NodeStatus
from devit_fusion.roster.fleet_file import add_device, add_member, remove_device, remove_member, replace_device
from devit_pipeline.local_cell import LocalCell, LocalDevice

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
RATE, ENGINE, DEADLINE_S = 60.0, "paced:5", 60.0


@dataclass
class Told:
    """What became of one request."""

    sent_s: float
    ended_s: float
    result: Answer | DevitError


class Load(threading.Thread):
    """Asks at a fixed rate, whatever is answered, until it is stopped."""

    def __init__(self, cell: LocalCell, picture: UInt8Array) -> None:
        super().__init__()
        self.told: list[Told] = []
        self._cell, self._picture = cell, picture
        self._ended, self._changed = threading.Event(), threading.Condition()

    def run(self) -> None:
        with self._cell.client() as client:
            client.status()
            sent: dict[int, float] = {}
            next_s = time.monotonic()
            while not self._ended.is_set() or sent:
                now_s = time.monotonic()
                if now_s >= next_s and not self._ended.is_set():
                    sent[client.submit(self._picture)] = now_s
                    next_s += 1 / RATE
                found = client.collect(max(0.0, min(next_s - time.monotonic(), 0.1)))
                with self._changed:
                    self.told += [Told(sent.pop(number), time.monotonic(), result) for number, result in found]
                    self._changed.notify_all()

    def wait_for(self, count: int, mask: int) -> None:
        """Wait until so many requests in a row, sent from now on, have been answered by these devices."""
        start_s, end_s = time.monotonic(), time.monotonic() + DEADLINE_S

        def is_so() -> bool:
            last = [told.result for told in self.told if told.sent_s >= start_s][-count:]
            return len(last) == count and all(isinstance(each, Answer) and each.mask == mask for each in last)

        with self._changed:
            assert self._changed.wait_for(is_so, end_s - time.monotonic()), self.told[-3:]

    def stop(self) -> None:
        self._ended.set()
        self.join(DEADLINE_S)


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[LocalCell]:
    devices = [LocalDevice("north", 0, engine=ENGINE), LocalDevice("south", 1, engine=ENGINE)]
    with LocalCell(TINY, tmp_path, devices, deadline_ms=300, queue=512, credit=4) as running:
        yield running


@pytest.fixture
def load(cell: LocalCell, bundle: Bundle) -> Iterator[Load]:
    running = Load(cell, bundle.golden()["images"][0])
    running.start()
    yield running
    running.stop()


def answered(told: list[Told]) -> Iterator[str]:
    """Say why devices are missing."""
    for each in told:
        if isinstance(each.result, Answer):
            yield from each.result.missing.values()


class Steps:
    """Changes under load, and what each cost."""

    def __init__(self, cell: LocalCell, load: Load) -> None:
        self.cell, self.load = cell, load
        self.status = cell.client()
        self.before = 0b11
        self.missing: dict[str, int] = {}

    def until(self, is_so: Callable[[NodeStatus], bool]) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while not is_so(found := self.status.status()):
            assert time.monotonic() < end_s, found
            self.status.wait(0.02)

    def taken(self) -> None:
        """Wait until the node has taken the fleet file as it is now."""
        digest = hashlib.sha256(self.cell.fleet_path.read_bytes()).hexdigest()
        self.until(lambda found: found.fleet is not None and found.fleet.sha256 == digest and not found.fleet.problem)

    def do(
        self,
        name: str,
        what: Callable[[], object],
        *,
        may_miss: int = 0,
        then: int = 0b11,
        most_out_s: float | None = None,
    ) -> None:
        """Change something under load; frames may do without ``may_miss`` meanwhile, a mask, and then have ``then``."""
        self.load.wait_for(20, self.before)
        pids = self.cell.pids
        starvation = Starvation(lambda: [os.getpid(), *pids.values()])
        start_s = time.monotonic()
        what()
        self.load.wait_for(40, then)
        told = [each for each in self.load.told if each.ended_s >= start_s]
        answers = [each.result for each in told if isinstance(each.result, Answer)]
        short = [each for each in told if isinstance(each.result, Answer) and each.result.mask != then]
        out_s = max((each.ended_s for each in short), default=start_s) - start_s
        why = ", ".join(f"{count} {why}" for why, count in Counter(answered(short)).items()) or "none"
        starved_s = starvation.total_s()
        self.missing[name] = len(short)
        print(
            f"{name}: {len(told)} frames at {RATE:g}/s, {len(short)} without a device "
            f"({why}), as before again after "
            f"{out_s * 1000:.0f} ms (starved {starved_s * 1000:.0f} ms), failed {len(told) - len(answers)}"
        )
        assert len(answers) == len(told), [each.result for each in told if not isinstance(each.result, Answer)]
        assert State.FAILED not in {answer.state for answer in answers}
        assert {index for answer in answers for index in answer.missing} <= {i for i in range(2) if may_miss >> i & 1}
        assert most_out_s is None or out_s - starved_s < most_out_s
        self.before = then


def serving(found: NodeStatus, submodel: int) -> str:
    (name,) = (each.name for each in found.devices if each.submodel == submodel and not each.is_spare)
    return name


def is_ready(found: NodeStatus, name: str) -> bool:
    return any(each.name == name and each.state == "ready" for each in found.devices)


def test_devices_are_added_removed_replaced_and_taken_over_under_load(cell: LocalCell, load: Load) -> None:
    steps, path = Steps(cell, load), cell.fleet_path

    def join(device: LocalDevice) -> None:
        add_device(path, cell.prepare(device))
        cell.start_agents([device.name])

    steps.do("add a spare", lambda: join(LocalDevice("spare", 1, engine=ENGINE)))
    steps.until(lambda found: is_ready(found, "spare") and serving(found, 1) == "south")
    steps.do("kill who serves", lambda: cell.kill("south"), may_miss=0b10, most_out_s=1.0)
    assert serving(steps.status.status(), 1) == "spare"

    steps.do("it comes back", lambda: cell.start_agents(["south"]))
    name = serving(steps.status.status(), 1)
    steps.do("hang who serves", lambda: os.kill(cell.pid(name), signal.SIGSTOP), may_miss=0b10, most_out_s=1.0)
    cell.kill(name)
    cell.start_agents([name])
    steps.until(lambda found: is_ready(found, name))

    seated = serving(steps.status.status(), 1)
    steps.do("remove who serves", lambda: remove_device(path, seated), may_miss=0b10, most_out_s=1.0)
    steps.taken()
    (left,) = (each.name for each in steps.status.status().devices if each.submodel == 1)

    new = cell.prepare(LocalDevice("east", 1, engine=ENGINE))

    def replace() -> None:
        replace_device(path, left, new)
        cell.start_agents(["east"])

    steps.do("replace one without a spare", replace, may_miss=0b10)
    assert [each.name for each in cell.fleet.device] == ["north", "east"]
    steps.do("remove the last of a submodel", lambda: remove_device(path, "north"), may_miss=0b01, then=0b10)
    assert steps.status.status().without_device == (0,)
    steps.do("add it again, from a partial cell", lambda: join(LocalDevice("west", 0, engine=ENGINE)), may_miss=0b01)
    assert steps.missing["add a spare"] == steps.missing["it comes back"] == 0


def test_clients_come_and_go_under_load(cell: LocalCell, load: Load, tmp_path: Path) -> None:
    """A removed client's link ends at once, and another client's requests are answered all the while."""
    steps, path, keys = Steps(cell, load), cell.fleet_path, new_keys(tmp_path / "lab", "lab")
    entry = ClientEntry("lab", keys.public.decode())
    steps.do("add a client", lambda: add_member(path, "client", entry))
    with Client.of_fleet(cell.fleet, keys, timeout_s=DEADLINE_S) as lab:
        assert lab.status().fleet is not None
        steps.do("remove a client", lambda: remove_member(path, "client", "lab"))
        steps.taken()
        lab.timeout_s = 2.0
        with pytest.raises(NoAnswerError):
            lab.status()
    assert "lab" not in {each.name for each in steps.status.status().clients}
