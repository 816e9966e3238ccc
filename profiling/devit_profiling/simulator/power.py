"""What simulated boards truly draw: at rest and with a busy GPU, rail by rail, and in between as the load changes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from devit_profiling.sensor.board_table import AGX_ORIN, AGX_THOR, NANO, ORIN_NANO, XAVIER_NX, Board

_LEAKAGE_PER_C = (0.002, 0.005)
_SCALE = (0.95, 1.05)


@dataclass(frozen=True)
class PowerRange:
    """Both ends of a board's power, per rail and in the order of its lines. For simulation only."""

    idle_mw: Mapping[str, int]
    load_mw: Mapping[str, int]


def _range(**idle_and_load_mw: tuple[int, int]) -> PowerRange:
    return PowerRange(
        idle_mw=MappingProxyType({rail: idle_mw for rail, (idle_mw, _) in idle_and_load_mw.items()}),
        load_mw=MappingProxyType({rail: load_mw for rail, (_, load_mw) in idle_and_load_mw.items()}),
    )


POWER: Mapping[str, PowerRange] = {
    # At rest with rails: a line of a Prometheus exporter's test. At 86 % of the GPU, detectnet at 921 MHz:
    # dusty-nv/jetson-inference issue 1206.
    NANO.key: _range(POM_5V_IN=(1388, 4531), POM_5V_GPU=(122, 1113), POM_5V_CPU=(163, 539)),
    # bjgeiser/tegra_burn, GPU at 99 %. At rest totals of 2763 to 3500 mW are reported, without rails: the two are
    # estimates.
    XAVIER_NX.key: _range(VDD_IN=(3160, 13711), VDD_CPU_GPU_CV=(440, 7499), VDD_SOC=(1040, 2063)),
    # Median line of the recording orin_nano_l4t36_01_idle_log; steady matrix products of
    # orin_nano_l4t36_02_load_log, both from gwonxhj/jetson-orin-nano-internal-lab.
    ORIN_NANO.key: _range(VDD_IN=(4287, 15479), VDD_CPU_GPU_CV=(444, 9474), VDD_SOC=(1375, 2092)),
    # First line of the recording agx_orin_l4t36_02_log. GPU_SOC and CPU_CV: stress test in the 50 W mode, NVIDIA
    # developer forum topic 323456. The other two are the highest readings of that log, whose GPU is at 44 %: an
    # estimate.
    AGX_ORIN.key: _range(
        VDD_GPU_SOC=(2801, 18400), VDD_CPU_CV=(400, 6000), VIN_SYS_5V0=(4536, 5140), VDDQ_VDD2_1V8AO=(604, 1008)
    ),
    # A line at rest of L4T 38, with the GPU rail of another: one step below zero. Busy: a line of L4T 39 of
    # wendylabsinc's host-stats test.
    AGX_THOR.key: _range(
        VDD_GPU=(-392, 37528), VDD_CPU_SOC_MSS=(5535, 18961), VIN_SYS_5V0=(5040, 18331), VIN=(16802, 87426)
    ),
}
"""By key of the board table, from lines of real boards."""


@dataclass(frozen=True)
class Piece:
    """An interval in which every rail's power changes along a straight line."""

    start_s: float
    duration_s: float
    from_mw: tuple[float, ...]
    """By rail, in the order of the board's lines; so is ``to_mw``."""
    to_mw: tuple[float, ...]


@dataclass(frozen=True)
class Physics:
    """How the power of a board follows its load."""

    leakage_per_c: float = 0.0035
    """Growth of the power per degree: leakage adds 0.2 to 0.5 % a degree."""
    rise_c: float = 12.0
    """Of the junction from idle to settled full load; recorded rises are 5 to 15 C over minutes."""
    warming_tau_s: float = 90.0
    scale: float = 1.0
    """Power of this unit as a multiple of the table's: no two are alike."""

    @classmethod
    def drawn(cls, seed: int) -> Physics:
        """Draw the leakage and the scale of a unit."""
        draw = random.Random(f"board {seed}")
        return cls(leakage_per_c=draw.uniform(*_LEAKAGE_PER_C), scale=draw.uniform(*_SCALE))


class TruePower:
    """The rails of a board at work. Cool and idle, or warm and fully loaded, it draws what the table says."""

    def __init__(self, board: Board, physics: Physics) -> None:
        """Let the board idle, cool, from the first call of :meth:`work` on."""
        power = POWER[board.key]
        self._physics = physics
        # No rail gives power back: one that reads negative at idle draws nothing, and its sensor is off.
        self._idle_mw = tuple(max(float(idle_mw), 0.0) for idle_mw in power.idle_mw.values())
        hot = 1 + physics.leakage_per_c * physics.rise_c
        self._rise_mw = tuple(
            load / hot - idle for load, idle in zip(power.load_mw.values(), self._idle_mw, strict=True)
        )
        self._now_s: float | None = None
        self._drive = 0.0  # load in effect, 0 to 1
        self._warmth = 0.0  # 0 cool, 1 settled at full load

    @property
    def rails_mw(self) -> tuple[float, ...]:
        """Present power of each rail."""
        grown = self._physics.scale * (1 + self._physics.leakage_per_c * self.rise_c)
        return tuple(
            (idle + self._drive * rise) * grown for idle, rise in zip(self._idle_mw, self._rise_mw, strict=True)
        )

    @property
    def rise_c(self) -> float:
        """Warming since the cool start."""
        return self._physics.rise_c * self._warmth

    def work(self, until_s: float, load: float) -> list[Piece]:
        """Work at a constant load, a share of the GPU from 0 to 1, until a moment; the first call sets the clock.

        Power follows the load at once, and then the temperature.

        Returns:
            The power since the last call; empty where no time has passed.
        """
        if self._now_s is None:
            self._now_s = until_s
        self._drive = load
        return [self._piece(until_s, load)] if until_s > self._now_s else []

    def _piece(self, until_s: float, drive: float) -> Piece:
        """Change along a straight line to another drive, and to the warmth that is reached by then."""
        assert self._now_s is not None  # set by work()
        start_s, from_mw = self._now_s, self.rails_mw
        duration_s = until_s - start_s
        mean_drive = (self._drive + drive) / 2
        kept = math.exp(-duration_s / self._physics.warming_tau_s)
        self._warmth = mean_drive + (self._warmth - mean_drive) * kept
        self._drive = drive
        self._now_s = until_s
        return Piece(start_s, duration_s, from_mw, self.rails_mw)
