"""Whether a board slows itself down now, as its own files say: throttle alerts, and caps on its clocks.

Linux shows what cools a board as ``/sys/class/thermal/cooling_device*``. NVIDIA's kernels have one named
``...-throttle-alert`` for each clock domain, whose state is above 0 while firmware lowers that clock for heat. Fans and
``hot-surface-alert`` are cooling devices too, and slow nothing down. What the kernel itself takes off clocks for heat
lowers ``scaling_max_freq`` and ``max_freq``. The present clocks say nothing: they fall wherever there is little to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from devit_contract.machine import ROOT, Count, clocks, read_text

_ALERT = "-throttle-alert"
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Throttling(msgspec.Struct, frozen=True):
    """How a board is slowed down now, as of some seconds ago."""

    alerts: Count = 0
    """Throttle alerts that are on."""
    clock_share: Share = 1.0
    """The highest clock that is allowed, as a share of the highest in the same power mode since the agent's start; of
    GPU and CPU the lower one."""
    is_simulated: bool = False
    """Whether a folder stands for the board."""


def throttle_alerts(root: Path = ROOT) -> int | None:
    """Count the throttle alerts that are on; ``None`` where the kernel has none, as on other computers."""
    alerts = [
        kind for kind in root.glob("sys/class/thermal/cooling_device*/type") if read_text(kind).strip().endswith(_ALERT)
    ]
    states = [read_text(kind.with_name("cur_state")).strip() for kind in alerts]
    return sum(state.isdecimal() and int(state) > 0 for state in states) if alerts else None


def highest_clocks_mhz(root: Path = ROOT) -> dict[str, int]:
    """Read the highest allowed clock of ``GPU`` and ``CPU``; of several CPU clusters that of the slowest."""
    found: dict[str, int] = {}
    for clock in clocks(root):
        found[clock.name] = min(found.get(clock.name, clock.max_mhz), clock.max_mhz)
    return found
