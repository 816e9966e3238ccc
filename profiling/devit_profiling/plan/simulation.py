"""A discrete-event simulation of one cell: requests wait for credit, devices answer one after the other.

What it assumes: a frame takes a device its inference, drawn from the measured distribution, and ``overhead_ms`` beyond,
half of it before and half after. A device works on its frames in the order of their dispatch, and holds ``credit`` of
them at most. Frames that need a next stage go before new requests, as in the node. Nothing is lost or withdrawn, no
deadline ends a frame, and images come in a random order that does not depend on the load.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float64Array, Int64Array

BoolArray = npt.NDArray[np.bool_]
Arrivals = Literal["poisson", "paced"]
"""``poisson``: at random; ``paced``: at equal distances, as from a camera."""
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Server:
    """One device."""

    quantiles_ms: Float64Array
    """Of its inference, from 0 to 100 % at equal distances."""
    overhead_ms: float
    """What a frame that nobody waits for takes beyond the inference, from request to answer."""

    @property
    def mean_ms(self) -> float:
        """Mean time of an inference."""
        return float((self.quantiles_ms[1:] + self.quantiles_ms[:-1]).mean()) / 2


@dataclass(frozen=True)
class Rules:
    """Which devices a frame asks, and when it ends."""

    stages: tuple[int, ...]
    """How many devices are asked together, stage by stage."""
    preference: tuple[int, ...] = ()
    """Devices in the order in which they are asked; empty: the one with the fewest frames in flight, by turns."""
    certain: Mapping[int, BoolArray] | None = None
    """By mask of the devices that have answered, for which images ``(n,)`` the answer is certain."""
    tests_each: bool = False
    """Test after each feature, not only after a stage."""


@dataclass(frozen=True)
class Load:
    """What is asked of the cell."""

    frames: int
    images: int
    """Of the trial; frames take them in turn, in a random order."""
    rate_hz: float | None = None
    """Absent: :attr:`in_flight` requests at any time."""
    arrivals: Arrivals = "poisson"
    in_flight: int = 1
    credit: int = 2
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """Frames in the order of their requests; those of the warm-up are in no latency and no rate."""

    latency_ms: Float64Array
    """Shape ``(frames,)``."""
    answered_ms: Float64Array
    masks: Int64Array
    """Of the devices in each answer."""
    asked: Int64Array
    """Of the devices that were asked."""
    rows: Int64Array
    """The image of each frame."""

    def percentile_ms(self, percent: float) -> float:
        """Give a percentile of the latency."""
        return float(np.percentile(self.latency_ms[self._begin :], percent))

    @property
    def per_second(self) -> float:
        """Answers per second."""
        times_ms = np.sort(self.answered_ms)[self._begin :]
        return 1000.0 * (len(times_ms) - 1) / float(times_ms[-1] - times_ms[0])

    @property
    def devices_asked(self) -> float:
        """Devices asked a frame, on average."""
        return sum(self.inferences(device) for device in range(int(self.asked.max()).bit_length()))

    def inferences(self, device: int) -> float:
        """Inferences of one device an answer, on average."""
        return float((self.asked >> device & 1).mean())

    @property
    def _begin(self) -> int:
        return int(_WARM_UP_SHARE * len(self.latency_ms))


def simulate(rules: Rules, servers: Mapping[int, Server], load: Load) -> Outcome:
    """Run one cell; the same load and seed give the same outcome, and the same images and times to other rules."""
    return _Cell(rules, servers, load).run()


class _Frame:
    __slots__ = ("arrival_ms", "asked", "got", "is_answered", "number", "stage")

    def __init__(self, number: int, arrival_ms: float) -> None:
        self.number, self.arrival_ms = number, arrival_ms
        self.stage = self.asked = self.got = 0
        self.is_answered = False


class _Cell:
    def __init__(self, rules: Rules, servers: Mapping[int, Server], load: Load) -> None:
        self._rules, self._load = rules, load
        self._devices = tuple(rules.preference or servers)
        self._half_ms = {device: servers[device].overhead_ms / 2 for device in self._devices}
        rng = np.random.default_rng(load.seed)
        rounds = -(-load.frames // load.images)
        self._rows = np.concatenate([rng.permutation(load.images) for _ in range(rounds)])[: load.frames]
        gaps = rng.exponential(size=load.frames) if load.arrivals == "poisson" else np.ones(load.frames)
        self._arrivals_ms = (np.cumsum(gaps) * (1000.0 / (load.rate_hz or 1.0))).tolist()
        self._taken_ms: dict[int, list[float]] = {}
        for device in range(max(servers) + 1):
            chances = rng.random(load.frames)  # drawn for absent devices too, so that the others' stay the same
            if device in self._devices:
                quantiles_ms = servers[device].quantiles_ms
                grid = np.linspace(0.0, 1.0, len(quantiles_ms))
                self._taken_ms[device] = np.interp(chances, grid, quantiles_ms).tolist()
        self._events: list[tuple[float, int, int, _Frame]] = []
        self._count = 0
        self._fresh: deque[_Frame] = deque()
        self._later: list[_Frame] = []
        self._in_flight = dict.fromkeys(self._devices, 0)
        self._free_ms = dict.fromkeys(self._devices, 0.0)
        self._turn = 0
        self._begun = 0
        self._answers = np.zeros((2, load.frames))
        self._masks = np.zeros((2, load.frames), np.int64)

    def run(self) -> Outcome:
        for _ in range(1 if self._load.rate_hz is not None else self._load.in_flight):
            self._begin(0.0)
        while self._events:
            now_ms, _, device, frame = heapq.heappop(self._events)
            if device < 0:
                self._fresh.append(frame)
                if self._load.rate_hz is not None:
                    self._begin(now_ms)
            else:
                self._in_flight[device] -= 1
                frame.got |= 1 << device
                self._judge(frame, now_ms)
            self._dispatch(now_ms)
        latency_ms, answered_ms = self._answers
        return Outcome(latency_ms, answered_ms, self._masks[0], self._masks[1], self._rows)

    def _begin(self, now_ms: float) -> None:
        """Have the next request arrive, if there is one."""
        if self._begun < self._load.frames:
            at_ms = self._arrivals_ms[self._begun] if self._load.rate_hz is not None else now_ms
            self._push(at_ms, -1, _Frame(self._begun, at_ms))
            self._begun += 1

    def _push(self, at_ms: float, device: int, frame: _Frame) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ms, self._count, device, frame))

    def _judge(self, frame: _Frame, now_ms: float) -> None:
        if frame.is_answered:
            return
        rules, is_whole = self._rules, frame.got == frame.asked
        is_last = is_whole and frame.stage == len(rules.stages)
        is_tested = is_whole or rules.tests_each
        if is_last or (is_tested and self._is_certain(frame)):
            self._answer(frame, now_ms)
        elif is_whole:
            self._later.append(frame)

    def _is_certain(self, frame: _Frame) -> bool:
        certain = (self._rules.certain or {}).get(frame.got)
        return certain is not None and bool(certain[self._rows[frame.number]])

    def _answer(self, frame: _Frame, now_ms: float) -> None:
        frame.is_answered = True
        self._answers[:, frame.number] = now_ms - frame.arrival_ms, now_ms
        self._masks[:, frame.number] = frame.got, frame.asked
        if self._load.rate_hz is None:
            self._begin(now_ms)

    def _dispatch(self, now_ms: float) -> None:
        claimed = 0
        waiting, self._later = self._later, []
        for frame in waiting:
            chosen = self._choose(frame, claimed)
            if chosen:
                self._send(frame, chosen, now_ms)
            else:
                self._later.append(frame)
                claimed |= sum(1 << device for device in self._devices if not frame.asked >> device & 1)
        while self._fresh and (chosen := self._choose(self._fresh[0], claimed)):
            self._send(self._fresh.popleft(), chosen, now_ms)

    def _choose(self, frame: _Frame, claimed: int) -> list[int]:
        """Choose the devices of a frame's next stage; none while they have no room."""
        count, credit, in_flight = self._rules.stages[frame.stage], self._load.credit, self._in_flight
        left = [device for device in self._devices if not frame.asked >> device & 1]
        chosen = left[:count] if self._rules.preference else left
        chosen = [device for device in chosen if in_flight[device] < credit and not claimed >> device & 1]
        if len(chosen) < count:
            return []
        if len(chosen) > count:
            size = len(self._devices)
            chosen.sort(key=lambda device: (in_flight[device], (self._devices.index(device) - self._turn) % size))
        return chosen[:count]

    def _send(self, frame: _Frame, devices: list[int], now_ms: float) -> None:
        self._turn += 1
        frame.stage += 1
        for device in devices:
            frame.asked |= 1 << device
            self._in_flight[device] += 1
            start_ms = max(now_ms + self._half_ms[device], self._free_ms[device])
            self._free_ms[device] = start_ms + self._taken_ms[device][frame.number]
            self._push(self._free_ms[device] + self._half_ms[device], device, frame)
