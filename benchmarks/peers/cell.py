"""Our side: client, node and agents as a user starts them, keys on; every device asked, or as few as are certain."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.alarm import Alarm
from benchmarks.peers.peer import ANSWER_S, Peer, Reply

from devit_contract.arrays import UInt8Array
from devit_contract.choices import Policy
from devit_contract.wire.answer import Answer
from devit_contract.wire.codec import State
from devit_pipeline.local_cell import LocalCell, LocalDevice


class Cell(Peer):
    """Client -> node -> agents, policy ``all``."""

    name = "devit"
    policy: ClassVar[Policy] = "all"

    def start(self, stack: ExitStack) -> None:
        """Start node and agents."""
        work = self.work
        engine = "built" if work.model == "real" else "null"
        devices = [LocalDevice(f"device{index}", index, engine=engine) for index in range(work.devices)]
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devit-")))
        cell = LocalCell(work.bundle, place / "cell", devices, store=work.store, deadline_ms=5000)
        self._client = stack.enter_context(stack.enter_context(cell).client(ANSWER_S))
        self._alarm = Alarm()
        self._numbers: dict[int, int] = {}

    def ask(self, image: UInt8Array) -> Reply:
        """Classify one image."""
        return self._whole(self._client.classify(image, mask=self.work.everybody, policy=self.policy))

    def submit(self, image: UInt8Array, number: int) -> None:
        """Send one image."""
        self._numbers[self._client.submit(image, mask=self.work.everybody, policy=self.policy)] = number

    def collect(self, timeout_s: float) -> list[int]:
        """Take what has been answered."""
        self._alarm.set(timeout_s)
        found = self._client.collect(timeout_s, wake=self._alarm.fd)
        for _, answer in found:
            self._whole(answer)
        return [self._numbers.pop(number) for number, _ in found]

    def _whole(self, answer: Answer | Exception) -> Reply:
        if isinstance(answer, Exception):
            raise RuntimeError(f"expected an answer, found {answer}")
        is_whole = answer.mask == self.work.everybody or answer.state is State.CERTAIN
        if answer.logits is None or not is_whole:
            raise RuntimeError(f"expected a whole answer, found {answer.state.name} ({answer.why})")
        return Reply(answer.logits, answer.mask)


class CertainCell(Cell):
    """The same cell under policy ``certain``."""

    name = "devit, certain"
    policy = "certain"
