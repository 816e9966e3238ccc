"""What every side can do: answer one image, or take images in and give their answers out as they come."""

from __future__ import annotations

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import ClassVar, NamedTuple

import numpy as np
from benchmarks.peers.work import Work
from typing_extensions import Self

from devit_contract.arrays import Float32Array, UInt8Array
from devit_engines.engine import ModelRef

ANSWER_S = 30.0
"""How long any answer may take: a side that needs longer hangs."""


class Reply(NamedTuple):
    """What a client gets for an image."""

    logits: Float32Array
    mask: int
    """Devices in it, one bit each."""


class Peer(ABC):
    """One side while it runs, seen by its client; a context manager. It has a process of its own, see :mod:`host`."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Packages that it imports, beside those of this project."""
    program: ClassVar[str] = ""
    """A program that it starts."""
    part: ClassVar[ModelRef | None] = None
    """The one model that answers alone; ``None`` for the fusion of all devices."""
    is_checked: ClassVar[bool] = True
    """Whether its answers mean anything."""

    def __init__(self, work: Work) -> None:
        """Start all processes and wait until they answer."""
        self.work = work
        self.images = work.images()
        with ExitStack() as stack:
            self.start(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all processes."""
        self._stack.close()

    @classmethod
    def missing(cls) -> str:
        """Say in one line why it cannot run here; empty if it can."""
        lacks = [name for name in cls.needs if find_spec(name) is None]
        if lacks:
            return f"not measured: {cls.name} needs {', '.join(lacks)}: run make bench, which installs it"
        if cls.program and not any(
            os.access(os.path.join(folder, cls.program), os.X_OK)  # noqa: PTH118 - PATH holds text
            for folder in (*os.get_exec_path(), "/usr/sbin")
        ):
            return f"not measured: {cls.name} needs the program {cls.program}: run apt-get install {cls.program}"
        return ""

    @abstractmethod
    def start(self, stack: ExitStack) -> None:
        """Start all processes and connect; whatever is to be stopped goes onto the stack."""

    @abstractmethod
    def ask(self, image: UInt8Array) -> Reply:
        """Have one image answered, and nothing else meanwhile."""

    @abstractmethod
    def submit(self, image: UInt8Array, number: int) -> None:
        """Send one image, and do not wait."""

    @abstractmethod
    def collect(self, timeout_s: float) -> list[int]:
        """Give the numbers that have been answered; wait for one, at most ``timeout_s``.

        Raises:
            RuntimeError: An answer was no answer.
        """

    def reply(self, logits: bytes) -> Reply:
        """Read the answer of a side that knows nothing of masks."""
        return Reply(np.frombuffer(logits, np.float32), self.work.everybody)


class Queued(Peer):
    """A side whose client library answers in threads of its own."""

    def __init__(self, work: Work) -> None:
        """Begin with nothing under way."""
        self.done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        super().__init__(work)

    def collect(self, timeout_s: float) -> list[int]:
        """Take what the threads have put there."""
        found: list[int] = []
        try:
            while True:
                each = self.done.get(timeout=timeout_s) if not found and timeout_s > 0 else self.done.get_nowait()
                if isinstance(each, BaseException):
                    raise RuntimeError(f"expected an answer, found {each!r}") from each
                found.append(each)
        except queue.Empty:
            return found


class Pooled(Queued):
    """A side whose calls block: as many threads as requests may be under way, each with a connection of its own."""

    threads: ClassVar[int] = 16

    def connect(self) -> Callable[[UInt8Array], Reply]:
        """Open one connection, and give what asks over it."""
        raise NotImplementedError

    def pool(self, stack: ExitStack) -> None:
        """Start the threads, and connect the main one."""
        self._tasks: queue.SimpleQueue[tuple[UInt8Array, int] | None] = queue.SimpleQueue()
        self._ask = self.connect()
        stack.callback(lambda: [self._tasks.put(None) for _ in range(self.threads)])
        for _ in range(self.threads):
            threading.Thread(target=self._work, daemon=True).start()

    def ask(self, image: UInt8Array) -> Reply:
        """Ask over the main thread's connection."""
        return self._ask(image)

    def submit(self, image: UInt8Array, number: int) -> None:
        """Leave it to the next thread that is free."""
        self._tasks.put((image, number))

    def _work(self) -> None:
        ask = None
        while (task := self._tasks.get()) is not None:
            try:
                ask = ask or self.connect()
                ask(task[0])
                self.done.put(task[1])
            except Exception as err:
                self.done.put(err)


class Ordered:
    """Numbers of requests whose answers come in the order of the requests."""

    def __init__(self) -> None:
        """Begin with nothing under way."""
        self._numbers: deque[int] = deque()

    def sent(self, number: int) -> None:
        """Remember a request."""
        self._numbers.append(number)

    def answered(self, count: int) -> list[int]:
        """Give the numbers of the oldest requests."""
        return [self._numbers.popleft() for _ in range(count)]
