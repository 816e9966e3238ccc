"""The state of a node as a snapshot, and back."""

from __future__ import annotations

from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import Flight
from devit_fusion.frames.scheduler import Parts
from devit_fusion.record.records import FlightState, LinkState, Snapshot


def snapshot(parts: Parts, *, at_ns: int, turn: int, seed: int, under_way: int, lost: int) -> Snapshot:
    """Show a node's state; pictures in files that are in flight are told as images."""
    return Snapshot(
        at_ns=at_ns,
        turn=turn,
        seed=seed,
        next_frame_id=parts.join.next_id,
        grace_end_ns=parts.choices.grace_end_ns,
        links=tuple(_link_state(link) for link in parts.links.values()),
        asked=dict(parts.stages.turns),
        promise=parts.promise.state(),
        under_way=under_way,
        lost=lost,
    )


def resume(parts: Parts, shown: Snapshot) -> None:
    """Bring a node that has not seen anything yet into a state."""
    parts.chance.seed(shown.seed)
    parts.join.next_id = shown.next_frame_id
    parts.choices.grace_end_ns = shown.grace_end_ns
    parts.stages.turns.update(shown.asked)
    parts.promise.resume(shown.promise)
    if parts.promise.is_broken:
        parts.stages.promise_broken()
    for state in shown.links:
        _resume_link(parts.links[state.device], state)


def _link_state(link: Link) -> LinkState:
    return LinkState(
        device=link.index,
        name=link.name,
        hello=link.hello,
        boot_id=link.boot_id,
        engine_revision=link.engine_revision,
        links=link.links,
        is_leaving=link.is_leaving,
        is_revoked=link.is_revoked,
        is_excluded=link.is_excluded,
        overdue=link.overdue,
        probe_id=link.probe_id,
        probed_ns=link.probed_ns,
        in_flight=tuple(
            FlightState(frame_id, flight.sent_ns, flight.deadline_ns, flight.is_withdrawn, flight.coding)
            for frame_id, flight in link.in_flight.items()
        ),
        pace=link.pace.state(),
    )


def _resume_link(link: Link, state: LinkState) -> None:
    if state.hello is not None:
        link.connect(state.hello, state.boot_id, state.engine_revision)
    link.links, link.is_leaving, link.is_revoked = state.links, state.is_leaving, state.is_revoked
    link.is_excluded, link.overdue = state.is_excluded, state.overdue
    link.probe_id, link.probed_ns = state.probe_id, state.probed_ns
    for each in state.in_flight:
        flight = Flight(each.sent_ns, each.deadline_ns, is_withdrawn=each.is_withdrawn, coding=each.coding)
        link.in_flight[each.frame_id] = flight
    link.pace.resume(state.pace)
