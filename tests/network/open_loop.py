"""An open-loop client: asks at times fixed beforehand, whatever the answers do, and keeps what became of each request.

A client that waits for answers slows down with the cell and never sees a stall; this one does not. Latencies run from
the moment when a request was due, so that a request sent late counts as late.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from types import TracebackType

import numpy as np
import numpy.typing as npt
from tests.support.starvation import Starvation

from devit_contract.errors import DevitError
from devit_contract.wire.client import Answer, Client, Picture
from devit_contract.wire.codec import Kind, Message, State
from devit_contract.wire.status import NodeStatus
from devit_pipeline.local_cell import LocalCell

_BEFORE_S = 0.2
"""Waiting for a core so long before a request was due may still be felt in its answer."""
_PATIENCE_S = 60.0
"""Longest wait for anything but an answer."""


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    picture: int
    """Index of the picture sent."""
    due_s: float
    """When it was to be sent, on ``time.monotonic``."""
    latency_s: float
    """From then to its answer, on the same clock."""
    state: State
    """``NONE`` where it was never answered."""
    mask: int
    missing: dict[int, str]
    logits: npt.NDArray[np.float32] | None
    """Shape ``(K,)``; ``None`` where the frame failed."""
    wait_s: float = 0.0
    """Of the latency: at the node, before it was sent to any device."""
    starved_s: float = 0.0
    """How long threads of the cell waited for a core meanwhile, and shortly before: what other programs cost it."""

    @property
    def end_s(self) -> float:
        """When its answer was there."""
        return self.due_s + self.latency_s


@dataclass(frozen=True)
class Record:
    """All requests of one run."""

    outcomes: list[Outcome]
    """In the order in which they were due."""
    answers: Counter[int]
    """Request number to ANSWER messages received, those included that :class:`Client` drops."""
    status: NodeStatus
    """The node's counters when all was over."""
    lag_s: float
    """How late the latest request was sent: more than some milliseconds means that this machine stood still."""

    @property
    def states(self) -> Counter[str]:
        """How often each state was answered; ``NONE`` are lost."""
        return Counter(outcome.state.name for outcome in self.outcomes)

    @property
    def missing(self) -> dict[int, Counter[str]]:
        """Device index to the causes that the answers gave for its absence."""
        found: dict[int, Counter[str]] = {device.submodel: Counter() for device in self.status.devices}
        for outcome in self.outcomes:
            for device, why in outcome.missing.items():
                found[device][why] += 1
        return found

    @property
    def counted(self) -> dict[int, Counter[str]]:
        """The same as the node has counted it."""
        return {device.submodel: Counter(device.missing) for device in self.status.devices}

    def later_than(self, limit_s: float) -> list[Outcome]:
        """Find the answers that took longer, beyond what other programs on this machine took away meanwhile."""
        return [outcome for outcome in self.outcomes if outcome.latency_s - outcome.starved_s > limit_s]

    def between(self, start_s: float, end_s: float) -> list[Outcome]:
        """Find the requests that were due in a span of time."""
        return [outcome for outcome in self.outcomes if start_s <= outcome.due_s < end_s]

    def first_full_s(self, start_s: float) -> float:
        """Tell how long after ``start_s`` the first full answer came to a request that was due then or later."""
        ends = [o.end_s for o in self.outcomes if o.due_s >= start_s and o.state is State.FULL]
        return min(ends, default=float("inf")) - start_s

    def summary(self) -> str:
        """Tell the figures in one line."""
        latencies_ms = 1e3 * np.array([outcome.latency_s for outcome in self.outcomes])
        wait_ms = 1e3 * max(outcome.wait_s for outcome in self.outcomes)
        starved_ms = 1e3 * np.array([outcome.starved_s for outcome in self.outcomes])
        p50, p99, p999 = np.percentile(latencies_ms, (50, 99, 99.9))
        states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(self.states.items()))
        return (
            f"{len(self.outcomes)} frames: {states}; latency p50 {p50:.1f}, p99 {p99:.1f}, p99.9 {p999:.1f}, "
            f"max {latencies_ms.max():.1f} ms; "
            f"sent {1e3 * self.lag_s:.1f} ms late at most; waited for credit {wait_ms:.1f} ms at most, "
            f"for a core {np.median(starved_ms):.1f} ms by the median, {starved_ms.max():.1f} ms at most"
        )


class _Client(Client):
    """A client that also counts the answers which it does not hand out a second time."""

    def __init__(self, cell: LocalCell, timeout_s: float) -> None:
        node = cell.fleet.node
        super().__init__(
            node.client_endpoint, keys=cell.client_keys, node_key=node.public_key.encode(), timeout_s=timeout_s
        )
        self.answers: Counter[int] = Counter()

    def _take(self, message: Message) -> None:
        if message.kind is Kind.ANSWER:
            self.answers[message.frame_id] += 1
        super()._take(message)


class OpenLoop:
    """A running client in a thread of its own; a context manager, which ends it."""

    def __init__(
        self, cell: LocalCell, pictures: Sequence[Picture], *, rate_hz: float, frames: int, timeout_s: float = 10.0
    ) -> None:
        """Describe the traffic; it begins with the ``with`` block, when the node has answered a first question.

        Args:
            cell: Who is asked.
            pictures: Sent in turn, again and again.
            rate_hz: Requests a second.
            frames: How many in all.
            timeout_s: After it, a request counts as lost.
        """
        self._cell = cell
        self._pictures = pictures
        self._rate_hz = rate_hz
        self._frames = frames
        self._timeout_s = timeout_s
        self._progress = Condition()
        self._sent = 0
        self._should_stop = False
        self._starvation = Starvation(lambda: cell.pids.values())
        # When (``time.monotonic``), and what the total was then; requests end within seconds.
        self._starved_s: deque[tuple[float, float]] = deque(maxlen=1024)
        self._thread = ThreadPoolExecutor(1)
        self._record: Future[Record] | None = None

    def __enter__(self) -> OpenLoop:
        """Begin."""
        self._record = self._thread.submit(self._run)
        self._record.add_done_callback(lambda _: self._advance(self._sent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, whether all has been sent or not."""
        self._should_stop = True
        self._thread.shutdown()

    @property
    def is_over(self) -> bool:
        """Whether all has been sent and answered, or the client has failed."""
        return self._record is not None and self._record.done()

    def wait_for(self, sent: int, timeout_s: float = _PATIENCE_S) -> bool:
        """Wait until so many requests have been sent, or all is over; tell whether it was so in time."""
        with self._progress:
            return self._progress.wait_for(lambda: self._sent >= sent or self.is_over, timeout_s)

    def finish(self) -> Record:
        """Wait for the last answer."""
        assert self._record is not None
        return self._record.result(self._frames / self._rate_hz + _PATIENCE_S)

    def _advance(self, sent: int) -> None:
        with self._progress:
            self._sent = sent
            self._progress.notify_all()

    def _run(self) -> Record:
        client = _Client(self._cell, self._timeout_s)
        with client:
            client.status()
            due_s: dict[int, float] = {}  # by request number, in order
            found: dict[int, Outcome] = {}
            start_s, lag_s = time.monotonic(), 0.0
            for index in range(self._frames):
                due = start_s + index / self._rate_hz
                while (left_s := due - time.monotonic()) > 0 and not self._should_stop:
                    self._collect(client, left_s, due_s, found)
                if self._should_stop:
                    break
                self._note_starvation()
                lag_s = max(lag_s, time.monotonic() - due)
                due_s[client.submit(self._pictures[index % len(self._pictures)])] = due
                self._advance(index + 1)
            while len(found) < len(due_s) and not self._should_stop:
                self._collect(client, 0.2, due_s, found)
            # A second answer to the last request would come before the reply.
            status = client.status()
            return Record([found[number] for number in due_s if number in found], client.answers, status, lag_s)

    def _collect(self, client: _Client, timeout_s: float, due_s: dict[int, float], found: dict[int, Outcome]) -> None:
        taken = client.collect(timeout_s)
        now_s = time.monotonic()
        for number, answer in taken:
            picture = (number - next(iter(due_s))) % len(self._pictures)
            found[number] = _outcome(picture, due_s[number], now_s, answer, self._starved_since(due_s[number]))

    def _note_starvation(self) -> None:
        self._starved_s.append((time.monotonic(), self._starvation.total_s()))

    def _starved_since(self, due_s: float) -> float:
        times = [at_s for at_s, _ in self._starved_s]
        _, before_s = self._starved_s[max(0, bisect_right(times, due_s - _BEFORE_S) - 1)]
        return self._starvation.total_s() - before_s


def _outcome(picture: int, due_s: float, end_s: float, answer: Answer | DevitError, starved_s: float) -> Outcome:
    if isinstance(answer, DevitError):
        return Outcome(picture, due_s, end_s - due_s, State.NONE, 0, {}, None, starved_s=starved_s)
    latency_s, wait_s = end_s - due_s, answer.wait_us / 1e6
    return Outcome(
        picture, due_s, latency_s, answer.state, answer.mask, answer.missing, answer.logits, wait_s, starved_s
    )
