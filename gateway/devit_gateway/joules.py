"""Energy of devices from their power samples, for counters: it only rises."""

from __future__ import annotations

from dataclasses import dataclass

from devit_contract.wire.messages import Description, Telemetry
from devit_profiling.sensor.boards import BoardTotal
from devit_profiling.sensor.sensor_lines import parse_sensor_line

MAX_GAP_INTERVALS = 5
"""A longer pause between two samples adds nothing: what the device drew in it is unknown."""
_LEAST_INTERVAL_MS = 120
"""tegrastats prints no more than about nine lines a second, whatever interval is set."""


@dataclass(frozen=True)
class MeteredEnergy:
    """What one device used while it was sampled."""

    device: str
    energy_j: float
    scope: str
    """What the figure covers: the rails of the board's total."""
    is_simulated: bool


class EnergyMeter:
    """Adds up one device's energy by the trapezoid rule, sample by sample; ``figures/energy.py`` integrates windows."""

    def __init__(self, device: str, interval_ms: int) -> None:
        """Start at zero, on an unknown board."""
        self.device = device
        self._max_gap_ns = MAX_GAP_INTERVALS * max(interval_ms, _LEAST_INTERVAL_MS) * 1_000_000
        self._total = BoardTotal()
        self._energy_j = 0.0
        self._has_total = False
        self._last: tuple[int, int] | None = None

    def name_board(self, about: Description) -> None:
        """Set the board that a device says it is; on an unknown one, samples count only if their rails fit one."""
        was_simulated = self._total.is_simulated
        self._total = BoardTotal(about)
        self._total.is_simulated |= was_simulated

    def take(self, telemetry: Telemetry) -> None:
        """Add samples; skip other lines, and those of a board without a known total."""
        for line in telemetry.lines:
            sample = parse_sensor_line(line.text)
            if sample is None:
                continue
            power_mw = self._total.add(sample)
            if power_mw is not None:
                self._add(line.monotonic_ns, power_mw)

    def reading(self) -> MeteredEnergy | None:
        """The energy so far; ``None`` if nothing could be measured."""
        board = self._total.board
        if board is None or not self._has_total:
            return None
        scope = board.scope + (", board guessed" if self._total.is_guessed else "")
        return MeteredEnergy(self.device, self._energy_j, scope, self._total.is_simulated)

    def _add(self, time_ns: int, power_mw: int) -> None:
        self._has_total = True
        if self._last is not None:
            last_ns, last_mw = self._last
            if time_ns == last_ns:
                return  # lines that came together carry one stamp: the first counts
            if 0 < time_ns - last_ns <= self._max_gap_ns:
                # At the sensor's zero a reading may be one step below it; a counter never falls.
                self._energy_j += max(0, last_mw + power_mw) / 2e3 * (time_ns - last_ns) / 1e9
        self._last = (time_ns, power_mw)  # also if the clock went back: the device was rebooted
