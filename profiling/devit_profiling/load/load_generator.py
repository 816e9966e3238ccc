"""How a cell is asked: so many requests under way at once, or one at every beat whatever has been answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from devit_contract.errors import DevitError
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client, Picture
from devit_profiling.record.record import Plan


@dataclass(frozen=True)
class Sent:
    """When a request was made, on the host's monotonic clock."""

    due_ns: int
    """When it was meant to be made; what its latency counts from."""
    late_us: int = 0
    """How much later it was made; 0 where an answer is what makes the next request due."""


Answered = Generator[tuple[Answer, Sent], None, None]
"""Answers, each with its request."""


def ask(client: Client, pictures: Iterable[Picture], plan: Plan, mask: int) -> Answered:
    """Ask as the plan says until the pictures end, and give what is answered.

    Raises:
        LinkError: Nobody answers, or the node refuses this client.
        InputError: The node refuses a picture.
    """
    if plan.rate_hz is None:
        return _closed_loop(client, pictures, plan.in_flight, mask)
    return _open_loop(client, pictures, plan.rate_hz, mask)


def _closed_loop(client: Client, pictures: Iterable[Picture], in_flight: int, mask: int) -> Answered:
    """Keep so many requests under way: each answer makes the next request due."""
    sent: deque[Sent] = deque()  # of the requests under way; answers come in their order

    def stamped() -> Iterator[Picture]:
        for picture in pictures:
            sent.append(Sent(time.monotonic_ns()))  # the client sends it at once
            yield picture

    for answer in client.stream(stamped(), in_flight=in_flight, mask=mask):
        yield answer, sent.popleft()


def _open_loop(client: Client, pictures: Iterable[Picture], rate_hz: float, mask: int) -> Answered:
    """Make a request at every beat, whatever has been answered.

    A beat that could not be kept is made up for at once, and its lateness noted: beats are never left out, or the
    slowest answers would be those that nobody asked for.
    """
    sent: dict[int, Sent] = {}
    start_ns = time.monotonic_ns()
    for beat, picture in enumerate(pictures):
        due_ns = start_ns + round(beat / rate_hz * 1e9)
        while (left_s := (due_ns - time.monotonic_ns()) / 1e9) > 0:
            yield from _answered(client, sent, left_s)
        late_us = (time.monotonic_ns() - due_ns) // 1000
        sent[client.submit(picture, mask=mask)] = Sent(due_ns, late_us)
        yield from _answered(client, sent, 0.0)  # also where every beat is late
    while sent:
        yield from _answered(client, sent, client.timeout_s)


def _answered(client: Client, sent: dict[int, Sent], wait_s: float) -> Iterator[tuple[Answer, Sent]]:
    # The client waits in whole milliseconds, rounded up: the last one before a beat is not waited for.
    for number, answer in client.collect(max(0.0, wait_s - 0.001)):
        request = sent.pop(number)
        if isinstance(answer, DevitError):
            raise answer
        yield answer, request
