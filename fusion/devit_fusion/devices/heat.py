"""Which devices are slower than they could be, so that others are asked before them. No sockets, no clock of its own.

What their boards say comes with the replies to pings, once a second: throttle alerts, caps on clocks, over-current
events. That inference takes longer than it used to is the node's own finding. Either begins and ends with an event, and
neither at once: a cause has to last ten seconds, and to be gone for thirty; each time that it comes back soon, twice as
long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from devit_contract.machine import OverCurrentEvents, Throttling
from devit_contract.service.journal import Priority
from devit_contract.wire.messages import ControlReply
from devit_contract.wire.words import Slowdown
from devit_fusion.devices.links import Link
from devit_fusion.events import Events

_BEGIN_NS, _END_NS, _MOST_END_NS = 10_000_000_000, 30_000_000_000, 240_000_000_000
_SOON_NS = 600_000_000_000
_CAPPED, _FREE = 0.9, 0.95
"""Shares of a clock: below the first it is capped, from the second on it is not."""
_ROSE_NS = 8_000_000_000
"""How long a count of over-current events says that there are some: agents read it every five seconds."""
_SLOWER, _AS_FAST, _LEAST_S = 1.5, 1.2, 0.001
"""Inference is slower than usual from so many times on, and as fast up to so many; less than a millisecond is noise."""
_LEAST_INFERENCES = 5
_FALL, _RISE = 4, 600
"""What is usual follows shorter times within some looks, and longer ones within ten minutes."""
_REST_NS = 30_000_000_000
"""A device that has computed nothing for so long has rested, and may be as fast as before."""
_WHAT: Mapping[Slowdown, str] = {
    Slowdown.ALERT: "its board reports that it is too hot",
    Slowdown.CLOCK: "its clocks are capped below what its power mode allows",
    Slowdown.OVER_CURRENT: "its board counts over-current events",
    Slowdown.LATENCY: "its inference takes longer than it did",
}


@dataclass
class _Cause:
    """One reason for which a device may be slow, with hysteresis."""

    is_on: bool = False
    since_ns: int | None = None
    """When the opposite of ``is_on`` was seen first; ``None`` while it is not."""
    end_ns: int = _END_NS
    ended_ns: int = -_SOON_NS

    def see(self, is_bad: bool | None, now_ns: int) -> None:
        """Take a look in; ``None`` says that it can't be told, or is neither."""
        if is_bad is None or is_bad is self.is_on:
            self.since_ns = None if is_bad is self.is_on else self.since_ns
            return
        self.since_ns = now_ns if self.since_ns is None else self.since_ns
        if now_ns - self.since_ns < (self.end_ns if self.is_on else _BEGIN_NS):
            return
        if self.is_on:
            self.ended_ns = now_ns
        else:
            is_soon = now_ns - self.ended_ns < _SOON_NS
            self.end_ns = min(2 * self.end_ns, _MOST_END_NS) if is_soon else _END_NS
        self.is_on, self.since_ns = not self.is_on, None


@dataclass
class _Inference:
    """How long a device's inference takes, against its own past."""

    seen: tuple[int, float] = (0, 0.0)
    """Number and sum of inference times when they were looked at last."""
    usual_s: float | None = None
    judged_ns: int = 0

    def is_slower(self, counts: int, sum_s: float, now_ns: int) -> bool | None:
        inferences, spent_s = counts - self.seen[0], sum_s - self.seen[1]
        if inferences < _LEAST_INFERENCES:
            return False if now_ns - self.judged_ns > _REST_NS else None
        self.seen, self.judged_ns = (counts, sum_s), now_ns
        mean_s = spent_s / inferences
        usual_s = mean_s if self.usual_s is None else self.usual_s
        self.usual_s = usual_s + (mean_s - usual_s) / (_FALL if mean_s < usual_s else _RISE)
        if mean_s - usual_s < _LEAST_S or mean_s <= _AS_FAST * usual_s:
            return False
        return True if mean_s >= _SLOWER * usual_s else None


@dataclass
class _State:
    """What is known of one device."""

    causes: dict[Slowdown, _Cause] = field(default_factory=lambda: {cause: _Cause() for cause in Slowdown})
    inference: _Inference = field(default_factory=_Inference)
    over_current: OverCurrentEvents | None = None
    rose_ns: int = -_ROSE_NS


class Heat:
    """The slow devices of one node."""

    def __init__(self, events: Events) -> None:
        """Start with none."""
        self._events = events
        self._states: dict[str, _State] = {}  # by device name: spares share a submodel

    def forget(self, link: Link) -> None:
        """Judge a device anew: it has another engine, or another process."""
        self._states.pop(link.name, None)
        link.slowdowns = ()
        link.throttling = None

    def replied(self, link: Link, reply: ControlReply, now_ns: int) -> None:
        """Take in what came with a device's reply to a ping."""
        link.throttling = reply.throttling
        state = self._states.get(link.name)
        if state is None:
            counted = sum(link.inference.counts), link.inference.sum_s
            inference = _Inference(counted, judged_ns=now_ns)
            state = self._states[link.name] = _State(inference=inference, over_current=reply.over_current)
        told, before = reply.throttling, link.slowdowns
        state.causes[Slowdown.ALERT].see(None if told is None else told.alerts > 0, now_ns)
        state.causes[Slowdown.CLOCK].see(_is_capped(told), now_ns)
        state.causes[Slowdown.OVER_CURRENT].see(_rises(state, reply.over_current, now_ns), now_ns)
        is_slower = state.inference.is_slower(sum(link.inference.counts), link.inference.sum_s, now_ns)
        state.causes[Slowdown.LATENCY].see(is_slower, now_ns)
        link.slowdowns = tuple(cause for cause, each in state.causes.items() if each.is_on)
        if link.slowdowns != before:
            self._tell(link)

    def _tell(self, link: Link) -> None:
        mark = " (SIMULATED)" if link.throttling is not None and link.throttling.is_simulated else ""
        if link.slowdowns:
            why = ", ".join(_WHAT[cause] for cause in link.slowdowns)
            text = f"slows down: {why}{mark}; others are asked before it where the policy lets the node choose"
            self._events.note(link.name, text, Priority.WARNING)
        else:
            self._events.note(link.name, f"does not slow down any more{mark}")


def _is_capped(told: Throttling | None) -> bool | None:
    if told is None or _CAPPED <= told.clock_share < _FREE:
        return None
    return told.clock_share < _CAPPED


def _rises(state: _State, counted: OverCurrentEvents | None, now_ns: int) -> bool | None:
    """Tell whether a board counts over-current events; ``None`` where it does not tell."""
    if counted is None:
        return None
    if state.over_current is not None and counted.total > state.over_current.total:
        state.rose_ns = now_ns
    state.over_current = counted
    return now_ns - state.rose_ns < _ROSE_NS
