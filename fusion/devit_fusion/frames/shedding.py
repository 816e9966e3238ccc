"""Requests that are not served for the sake of the others: answered at once, counted by reason, told now and then."""

from __future__ import annotations

from collections.abc import Mapping

from devit_contract.artefacts.fleet import Fleet
from devit_contract.service.journal import Priority
from devit_contract.wire.answer import SHED_TEXTS
from devit_contract.wire.words import MissingReason, ShedReason
from devit_fusion.events import Events
from devit_fusion.frames.answers import Answers
from devit_fusion.frames.turns import Turns
from devit_fusion.ports.clients import Request

_MAX_WAITING_BYTES = 12 << 20
"""Of all requests that wait, beside their number: pictures of some MiB fill no memory."""
_TOLD_NS = 60_000_000_000
"""How often an event says that a client's requests are not served, and why."""


class Shedding:
    """What one node does not serve."""

    def __init__(self, fleet: Fleet, turns: Turns, answers: Answers, events: Events, devices: int) -> None:
        """Shed requests of ``turns``, which ask some of so many devices."""
        self._queue, self._devices = fleet.serving.queue, devices
        self._turns, self._answers, self._events = turns, answers, events
        self._told_ns: dict[tuple[str, ShedReason], int] = {}

    @property
    def is_full(self) -> bool:
        """Whether more wait than the queue has room for."""
        return self._turns.waiting > self._queue or self._turns.waiting_bytes > _MAX_WAITING_BYTES

    def why_not(self, request: Request) -> ShedReason | None:
        """Tell why a new request finds no place, or that it may be added; also where it would only be taken out again.

        A client that floods a full queue costs the node half as much so.
        """
        turns = self._turns
        is_long = turns.waiting >= self._queue
        is_full = is_long or turns.waiting_bytes + len(request.picture.payload) > _MAX_WAITING_BYTES
        if is_full and turns.is_heaviest(request):
            return ShedReason.QUEUE if is_long else ShedReason.BYTES
        return ShedReason.MAX_IN_FLIGHT if turns.is_at_limit(request) else None

    def make_room(self, newest: Request) -> Request:
        """Take a request out of the full queue, answer and return it; ``newest`` is the one that has filled it."""
        is_long = self._turns.waiting > self._queue
        request = self._turns.take_heaviest()
        why = ShedReason.SHARE if request.name != newest.name else ShedReason.QUEUE if is_long else ShedReason.BYTES
        self.shed(request, why)
        return request

    def shed(
        self,
        request: Request,
        why: ShedReason,
        missing: Mapping[int, MissingReason] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        """Answer a request that is not served; ``missing`` says why each device is not in the answer."""
        mask = request.picture.mask
        if missing is None:
            missing = {
                index: MissingReason.OVERLOAD if not mask or mask >> index & 1 else MissingReason.NOT_ASKED
                for index in range(self._devices)
            }
        self._answers.shed(request, dict(missing), why)
        self._turns.shed(request, why, is_new=is_new)
        now_ns, known = request.arrival_ns, (request.name, why)
        if now_ns >= self._told_ns.get(known, 0):
            self._told_ns[known] = now_ns + _TOLD_NS
            limit = f" ({self._turns.limit_of(request.name)})" if why is ShedReason.MAX_IN_FLIGHT else ""
            text = f"a request was not served: {SHED_TEXTS[why]}{limit}; told once a minute"
            self._events.note(request.name, text, Priority.WARNING)
