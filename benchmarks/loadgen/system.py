"""The system under test: LoadGen's samples go to a cell by our client, and the cell's logits come back."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.choices import Policy
from devit_contract.errors import DevitError
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client

Complete = Callable[[Sequence[tuple[int, bytes]]], None]
"""Takes pairs of a sample's number in LoadGen and its answer's bytes."""
_REPORT_S = 0.5


class Sample(Protocol):
    """What LoadGen issues: ``mlperf_loadgen.QuerySample``."""

    id: int
    index: int


class System:
    """Answers samples in a thread of its own, as LoadGen's is not to wait; a context manager."""

    def __init__(
        self,
        client: Client,
        images: UInt8Array,
        complete: Complete,
        tell: Callable[[int | str], None],
        *,
        policy: Policy,
        in_flight: int,
    ) -> None:
        """Take a client, which belongs to the system from now on.

        Args:
            client: Connected to the cell.
            images: Shape ``(n, H, W, C)``; a sample's index is a place among them.
            complete: Gives LoadGen answers.
            tell: Takes how many samples are answered, twice a second, or why no more will be: LoadGen then waits for
                ever, so whoever is told has to end this process.
            policy: Which devices are asked.
            in_flight: Requests that the cell has at most; the others wait here, and LoadGen counts that time.
        """
        self._client, self._images, self._complete, self._tell = client, images, complete, tell
        self._policy, self._in_flight = policy, in_flight
        self._waiting: deque[tuple[int, int]] = deque()
        self._open: dict[int, int] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._is_over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.issued = 0
        self.answered = 0
        self.states: Counter[str] = Counter()
        """Answers by their state: ``full``, ``certain``, ``partial``."""

    def issue(self, samples: Sequence[Sample]) -> None:
        """Take samples from LoadGen, and return at once."""
        self._waiting.extend((sample.id, sample.index) for sample in samples)
        self.issued += len(samples)
        os.eventfd_write(self._wake, 1)

    def __enter__(self) -> System:
        """Start answering."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, when LoadGen has all its answers."""
        self._is_over = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _serve(self) -> None:
        try:
            next_report_s = time.monotonic()
            while not self._is_over:
                while self._waiting and len(self._open) < self._in_flight:
                    sample, index = self._waiting.popleft()
                    self._open[self._client.submit(self._images[index], policy=self._policy)] = sample
                self._take(self._client.collect(_REPORT_S, wake=self._wake))
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                if time.monotonic() >= next_report_s:
                    next_report_s = time.monotonic() + _REPORT_S
                    self._tell(self.answered)
        except DevitError as err:
            self._tell(f"sample {self.answered + 1} of {self.issued} issued has no answer: {err}")
        except BaseException as err:
            self._tell(f"the system under test failed: {err!r}")
            raise

    def _take(self, answers: Sequence[tuple[int, Answer | DevitError]]) -> None:
        found = []
        for number, answer in answers:
            if isinstance(answer, DevitError):
                raise answer
            answer.probabilities()  # raises where a frame failed
            assert answer.logits is not None
            found.append((self._open.pop(number), np.asarray(answer.logits, "<f4").tobytes()))
            self.states[answer.state.name.lower()] += 1
        if found:
            self.answered += len(found)
            self._complete(found)
