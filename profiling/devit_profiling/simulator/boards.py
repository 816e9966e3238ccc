"""What simulated boards draw at rest and with a busy GPU, rail by rail, from lines of real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from devit_profiling.sensor.board_table import AGX_ORIN, AGX_THOR, NANO, ORIN_NANO, XAVIER_NX


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


POWER: Mapping[str, PowerRange] = MappingProxyType(
    {
        # At rest with rails: a line of a Prometheus exporter's test. At 86 % of the GPU, detectnet at 921 MHz:
        # dusty-nv/jetson-inference issue 1206.
        NANO.key: _range(POM_5V_IN=(1388, 4531), POM_5V_GPU=(122, 1113), POM_5V_CPU=(163, 539)),
        # bjgeiser/tegra_burn, GPU at 99 %. At rest totals of 2763 to 3500 mW are told, without rails: the two are
        # estimates.
        XAVIER_NX.key: _range(VDD_IN=(3160, 13711), VDD_CPU_GPU_CV=(440, 7499), VDD_SOC=(1040, 2063)),
        # Median line of the recording orin_nano_l4t36_01_idle_log; steady matrix products of
        # orin_nano_l4t36_02_load_log, both from gwonxhj/jetson-orin-nano-internal-lab.
        ORIN_NANO.key: _range(VDD_IN=(4287, 15479), VDD_CPU_GPU_CV=(444, 9474), VDD_SOC=(1375, 2092)),
        # First line of the recording agx_orin_l4t36_02_log. GPU_SOC and CPU_CV: stress test in the 50 W mode, NVIDIA
        # developer forum topic 323456. The other two are the highest readings of that log, whose GPU is at 44 %: an
        # estimate.
        AGX_ORIN.key: _range(
            VDD_GPU_SOC=(2801, 18400),
            VDD_CPU_CV=(400, 6000),
            VIN_SYS_5V0=(4536, 5140),
            VDDQ_VDD2_1V8AO=(604, 1008),
        ),
        # A line at rest of L4T 38, with the GPU rail of another: one step below zero. Busy: a line of L4T 39 of
        # wendylabsinc's host-stats test.
        AGX_THOR.key: _range(
            VDD_GPU=(-392, 37528),
            VDD_CPU_SOC_MSS=(5535, 18961),
            VIN_SYS_5V0=(5040, 18331),
            VIN=(16802, 87426),
        ),
    }
)
"""By key of the board table."""
