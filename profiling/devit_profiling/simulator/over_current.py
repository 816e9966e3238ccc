"""A simulated board's counters of over-current events, as files like those of the kernel."""

from __future__ import annotations

from pathlib import Path

from devit_contract.machine import over_current_events

_EVENTS_PER_S = 7.6
"""Published of an Orin NX at work: 27,390 instantaneous ones in 3,605 s."""


class SimulatedCounters:
    """Counts instantaneous over-current events while the load is high."""

    def __init__(self, root: Path, least_load: float) -> None:
        """Go on counting where an earlier program ended; ``least_load`` is the share of the GPU that causes events."""
        self._folder = root / "sys/class/hwmon/hwmon3"
        self._least_load = least_load
        before = over_current_events(root)
        self._events = float(before.instantaneous) if before is not None else 0.0
        self._folder.mkdir(parents=True, exist_ok=True)
        files = {"oc1_event_cnt": "0", "oc2_event_cnt": "0", "oc3_event_cnt": f"{self._events:.0f}"}
        for name, text in (files | {"name": "soctherm_oc"}).items():
            self._write(name, text)

    def work(self, duration_s: float, load: float) -> None:
        """Work at a constant load, 0 to 1."""
        if load >= self._least_load:
            self._events += _EVENTS_PER_S * duration_s
            self._write("oc3_event_cnt", f"{int(self._events)}")

    def _write(self, name: str, text: str) -> None:
        """Replace a file, so that a reader finds a whole one."""
        draft = self._folder / f".{name}"
        draft.write_text(f"{text}\n")
        draft.replace(self._folder / name)
