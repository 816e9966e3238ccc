"""A simulated Jetson: work goes in, lines of ``tegrastats`` come out, each with the word SIMULATED.

Time is the caller's: a program passes the real one, a test an hour in a moment. The figures are those of measured
boards (``power.py``); they are not a measurement of anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from devit_profiling.sensor.board_table import AGX_ORIN, AGX_THOR, NANO, ORIN_NANO, XAVIER_NX, Board
from devit_profiling.sensor.tegrastats import SIMULATED
from devit_profiling.simulator.power import POWER, Physics, TruePower
from devit_profiling.simulator.sensor import Readings, lag_sensor

_IDLE_LOAD = 0.02


class SimulatedBoard:
    """A board at work in the caller's time: the same arguments and calls give the same lines."""

    def __init__(
        self,
        board: Board,
        *,
        seed: int = 0,
        power: TruePower | None = None,
        readings: Readings | None = None,
        started: datetime = datetime(2026, 1, 1),
    ) -> None:
        """Let the board idle.

        By default it draws what a drawn unit of it does, and its sensor shows that with the board's lag and with
        ripple. ``started`` is the local date and time at ``time_s`` 0, for the stamps.
        """
        self._board = board
        self._shape = _SHAPES[board.key]
        self._started = started
        self._power = power or TruePower(board, Physics.drawn(seed))
        self._readings = readings or Readings(board, lag_sensor(board), self._power.rails_mw, seed)
        self._lines = 0
        self._sum_mw = dict.fromkeys(POWER[board.key].idle_mw, 0)

    def work(self, until_s: float, load: float) -> None:
        """Work with a constant share of the GPU in use, 0 to 1; more counts as 1.

        ``until_s`` is not before that of the last call; the first call sets the clock.
        """
        for piece in self._power.work(until_s, min(max(load, 0.0), 1.0)):
            self._readings.see(piece)

    def rails_mw(self) -> dict[str, int]:
        """Read the sensor now, in the order of the board's lines; every reading has a ripple of its own."""
        return dict(zip(POWER[self._board.key].idle_mw, self._readings.read_mw(), strict=True))

    def line(self, time_s: float, load: float) -> str:
        """Work until ``time_s`` as :meth:`work` does, and give its line, without a line end."""
        load = min(max(load, 0.0), 1.0)
        self.work(time_s, load)
        rails_mw = self.rails_mw()
        self._lines += 1
        for rail, power_mw in rails_mw.items():
            self._sum_mw[rail] += power_mw
        shape = self._shape
        stamp = f"{self._started + timedelta(seconds=time_s):%m-%d-%Y %H:%M:%S} " if shape.has_stamp else ""
        # In front, so that a line that is cut off keeps it.
        return (
            f"{stamp}{SIMULATED} {shape.memory} (cached 0MB) CPU [{self._cores(load)}] "
            f"{shape.loads.format(percent=round(100 * load))}{self._zones()} {self._rails(rails_mw)}"
        )

    def _cores(self, load: float) -> str:
        cores, idle_mhz, busy_mhz = self._shape.cpu
        busy = f"{round(100 * load)}%@{busy_mhz if load > _IDLE_LOAD else idle_mhz}"
        return ",".join([busy] + [f"0%@{idle_mhz}"] * (cores - 1))

    def _zones(self) -> str:
        rise_c = self._power.rise_c
        return " ".join(f"{zone}@{round(8 * (idle_c + rise_c)) / 8:g}C" for zone, idle_c in self._shape.idle_c.items())

    def _rails(self, rails_mw: Mapping[str, int]) -> str:
        """Print instant and average; the second is the mean since the start, as in tegrastats."""
        unit = self._shape.rail_unit
        return " ".join(
            f"{rail} {mw}{unit}/{int(self._sum_mw[rail] / self._lines)}{unit}" for rail, mw in rails_mw.items()
        )


@dataclass(frozen=True)
class _Shape:
    """A board's lines beside its rails."""

    memory: str
    cpu: tuple[int, int, int]
    """Number of cores, and the MHz of one at rest and at work."""
    idle_c: Mapping[str, float]
    loads: str = "GR3D_FREQ {percent}% "
    """What the line says of the GPU's load, if anything."""
    has_stamp: bool = True
    rail_unit: str = "mW"


# Lines without root: L4T 36 of the Orins as in the recordings orin_nano_l4t36_01_idle_log and agx_orin_l4t36_03, L4T 35
# of Xavier NX, L4T 32 of Nano as in nano_l4t32_02, L4T 38 of Thor, which says nothing of its GPU's load.
_SHAPES = {
    ORIN_NANO.key: _Shape(
        "RAM 1697/7620MB (lfb 42x4MB) SWAP 0/3810MB",
        cpu=(6, 729, 1344),
        idle_c={"cpu": 40.25, "soc2": 39.125, "soc0": 40.375, "gpu": 40.875, "tj": 41.0, "soc1": 41.0},
    ),
    AGX_ORIN.key: _Shape(
        "RAM 6879/62841MB (lfb 3x4MB) SWAP 0/31421MB",
        cpu=(12, 729, 2201),
        idle_c={"cpu": 47.625, "soc2": 44.25, "soc0": 45.75, "gpu": 43.25, "tj": 47.625, "soc1": 45.125},
    ),
    XAVIER_NX.key: _Shape(
        "RAM 2274/6834MB (lfb 27x4MB) SWAP 542/3417MB",
        cpu=(6, 1190, 1420),
        idle_c={"AUX": 36.5, "CPU": 40.0, "thermal": 37.875, "AO": 37.5, "GPU": 38.0},
        loads="EMC_FREQ 0% GR3D_FREQ {percent}% ",
    ),
    NANO.key: _Shape(
        "RAM 534/3964MB (lfb 98x4MB) SWAP 5/1982MB",
        cpu=(4, 204, 1479),
        idle_c={"PLL": 34.0, "CPU": 36.5, "GPU": 36.0, "AO": 39.5, "thermal": 36.25},
        loads="EMC_FREQ 0% GR3D_FREQ {percent}% ",
        has_stamp=False,
        rail_unit="",
    ),
    AGX_THOR.key: _Shape(
        "RAM 17842/125772MB (lfb 79x4MB) SWAP 0/4096MB",
        cpu=(14, 972, 2601),
        idle_c={"cpu": 30.5, "tj": 31.25, "soc012": 30.25, "soc345": 31.25},
        loads="",
    ),
}
SIMULATED_BOARDS = tuple(_SHAPES)
"""Keys of the boards that can be simulated."""
