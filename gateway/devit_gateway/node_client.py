"""A client for an event loop: a thread owns the connection to the node, with many requests in flight."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from devit_contract.choices import Policy
from devit_contract.errors import DevitError, LostLinkError, NoAnswerError
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client, Picture
from devit_contract.wire.status import NodeStatus

T = TypeVar("T")

_TURN_S = 0.5
"""Longest wait of the loop."""


class _Promise(Generic[T]):
    """A result of the thread that a coroutine waits for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[T] = self._loop.create_future()

    def give(self, result: T | DevitError) -> None:
        with suppress(RuntimeError):  # the loop has ended, so nothing waits any more
            self._loop.call_soon_threadsafe(self._settle, result)

    async def wait(self) -> T:
        return await self._future

    def _settle(self, result: T | DevitError) -> None:
        if self._future.done():
            return
        if isinstance(result, DevitError):
            self._future.set_exception(result)
        else:
            self._future.set_result(result)


@dataclass
class _Batch:
    """Images of one request, which are answered together."""

    pictures: Sequence[Picture]
    mask: int
    policy: Policy | None
    promise: _Promise[list[Answer | DevitError]]
    end_s: float
    """On ``time.monotonic``: when images are given up that have not been sent by then."""
    is_dropped: bool = False
    """Whether nobody waits for it any more."""

    def __post_init__(self) -> None:
        self._results: list[Answer | DevitError | None] = [None] * len(self.pictures)
        self._left = len(self.pictures)
        self._unsent = deque(range(len(self.pictures)))

    @property
    def is_waiting(self) -> bool:
        """Whether it has images to send, and somebody wants their answers."""
        return bool(self._unsent) and not self.is_dropped

    def take(self) -> int:
        """Take the next image to send."""
        return self._unsent.popleft()

    def settle(self, index: int, result: Answer | DevitError) -> None:
        """Note how an image ended."""
        self._results[index] = result
        self._left -= 1
        if self._left == 0:
            self.promise.give([found for found in self._results if found is not None])

    def give_up(self, err: DevitError) -> None:
        """End the images that have not been sent."""
        while self._unsent:
            self.settle(self._unsent.popleft(), err)


class AsyncNodeClient:
    """A client of one node; a context manager around its thread. Coroutines of any one event loop may call it."""

    def __init__(self, connect: Callable[[], Client], *, in_flight: int, timeout_s: float) -> None:
        """Keep what opens a connection, and another one after the node has refused one; the node need not be there.

        It has ``in_flight`` images at the same time; more wait here, for ``timeout_s`` at most. The connection has its
        own timeout.
        """
        self._connect = connect
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._incoming: SimpleQueue[_Batch | _Promise[NodeStatus]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="node-client", daemon=True)
        self._is_stopping = False
        self._lock = threading.Lock()
        self._is_over = False
        self._waiting: deque[_Batch] = deque()
        self._in_node: dict[int, tuple[_Batch, int]] = {}
        self._status: tuple[float, NodeStatus] | None = None
        self.turned_s = time.monotonic()
        """When the thread's loop last turned, on ``time.monotonic``."""

    def __enter__(self) -> AsyncNodeClient:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End the thread; pending requests end with an error."""
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended; without :meth:`__exit__` only a bug does that."""
        return self._is_over

    async def classify(
        self, pictures: Sequence[Picture], *, mask: int = 0, policy: Policy | None = None
    ) -> list[Answer | DevitError]:
        """Classify images, and wait for all answers; a refused image has the error in its place.

        Batches take turns, image by image. One whose caller is cancelled is dropped.

        Raises:
            LostLinkError: The thread has ended.
        """
        promise: _Promise[list[Answer | DevitError]] = _Promise()
        batch = _Batch(pictures, mask, policy, promise, time.monotonic() + self._timeout_s)
        self._put(batch)
        try:
            return await promise.wait()
        finally:
            batch.is_dropped = True

    async def status(self, max_age_s: float = 0.0) -> NodeStatus:
        """Ask the node for its state, or take an answer that is not older than ``max_age_s``.

        Raises:
            LinkError: It does not answer, refuses this client, or the thread has ended.
        """
        last = self._status
        if last is not None and time.monotonic() - last[0] <= max_age_s:
            return last[1]
        promise: _Promise[NodeStatus] = _Promise()
        self._put(promise)
        return await promise.wait()

    def _put(self, item: _Batch | _Promise[NodeStatus]) -> None:
        with self._lock:  # nothing comes in after the thread's last look
            if self._is_over:
                raise LostLinkError("the thread of the node's client has ended: see the log, restart the gateway")
            self._incoming.put(item)
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                try:
                    with self._connect() as client:
                        while not self._is_stopping:
                            self.turned_s = time.monotonic()
                            self._turn(client)
                except DevitError as err:
                    # The node refuses this client. The next request tries another connection.
                    self._fail(err)
                    self._rest()
        finally:
            with self._lock:
                self._is_over = True
            self._fail(LostLinkError("the gateway is stopping: try again later"))

    def _turn(self, client: Client) -> None:
        waiters: list[_Promise[NodeStatus]] = []
        for item in self._take_incoming():
            if isinstance(item, _Batch):
                self._waiting.append(item)
            else:
                waiters.append(item)
        self._submit_waiting(client)
        if waiters:
            self._ask_status(client, waiters)
        for number, result in client.collect(_TURN_S, wake=self._wake):
            batch, index = self._in_node.pop(number)
            batch.settle(index, result)

    def _submit_waiting(self, client: Client) -> None:
        """Send one image of each batch in turn, so that a large batch does not hold up a small one."""
        now_s = time.monotonic()
        for batch in self._waiting:
            if batch.end_s < now_s:
                text = (
                    f"{client.endpoint}: expected the node to take an image within {self._timeout_s:g} s, found it "
                    "busy or gone: check that fusion-node runs there, see devit status"
                )
                batch.give_up(NoAnswerError(text))
        self._waiting = deque(batch for batch in self._waiting if batch.is_waiting)
        while self._waiting and len(self._in_node) < self._in_flight:
            batch = self._waiting.popleft()
            index = batch.take()
            try:
                self._in_node[client.submit(batch.pictures[index], mask=batch.mask, policy=batch.policy)] = batch, index
            except DevitError as err:
                batch.settle(index, err)
            if batch.is_waiting:
                self._waiting.append(batch)

    def _ask_status(self, client: Client, waiters: list[_Promise[NodeStatus]]) -> None:
        self._status = None
        result: NodeStatus | DevitError
        try:
            result = status = client.status()
            self._status = (time.monotonic(), status)
        except DevitError as err:
            result = err
        for waiter in waiters:
            waiter.give(result)
        if isinstance(result, DevitError) and client.is_refused:
            raise result  # another question by the same connection would only be refused again

    def _take_incoming(self) -> list[_Batch | _Promise[NodeStatus]]:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        items = []
        while True:
            try:
                items.append(self._incoming.get_nowait())
            except Empty:
                return items

    def _fail(self, err: DevitError) -> None:
        for batch, index in self._in_node.values():
            batch.settle(index, err)
        for item in [*self._waiting, *self._take_incoming()]:
            if isinstance(item, _Batch):
                item.give_up(err)
            else:
                item.give(err)
        self._in_node.clear()
        self._waiting.clear()
        self._status = None

    def _rest(self) -> None:
        while not self._is_stopping and not select.select([self._wake], [], [], _TURN_S)[0]:
            self.turned_s = time.monotonic()
