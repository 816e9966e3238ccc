from __future__ import annotations

from devit_contract.service.journal import Log, Priority
from devit_fusion.events import Events


def test_a_flood_of_events_hides_neither_those_of_others_nor_the_nodes_own_errors() -> None:
    events = Events(Log("fusion-node"))
    for number in range(100):
        events.note("", f"a connection was shut, {number}", Priority.WARNING)
    events.note("jetson1", "refused")
    events.note("", "revoked_keys: cannot be read", Priority.ERROR)
    latest = [event.text for event in events.latest()]
    assert latest[:3] == ["revoked_keys: cannot be read", "refused", "more events than are kept, for a minute"]
    assert len(latest) == 23
