"""One line of ``tegrastats`` or ``hwmon-power`` as typed values, with the unit of every number in its name.

A value that a line does not have is absent (``None``, or not in the mapping), never zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class CoreLoad(msgspec.Struct, frozen=True):
    """One CPU core."""

    percent: int | None
    """Load; ``None`` for a core that is off."""
    mhz: int | None
    """Clock; ``None`` for a core that is off or where the line does not have it."""


class EngineLoad(msgspec.Struct, frozen=True):
    """One engine beside CPU and GPU: video encoder and decoder, JPEG, deep-learning accelerator, vision."""

    is_on: bool
    percent: int | None = None
    """Load; most engines do not report theirs."""
    mhz: int | None = None
    """Clock; zero on Thor where the engine rests."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The values of one line."""

    stamp: str | None = None
    """``MM-DD-YYYY hh:mm:ss``, local time, whole seconds: too coarse to integrate over."""
    is_simulated: bool = False
    ram_used_mb: int | None = None
    """``None`` on lines of the power chips alone."""
    ram_total_mb: int | None = None
    ram_largest_free_blocks: int | None = None
    """Number of free blocks of the largest size."""
    ram_largest_free_block_kb: int | None = None
    """Largest size of a free block."""
    swap_used_mb: int | None = None
    """Swap is on the line where it is switched on."""
    swap_total_mb: int | None = None
    swap_cached_mb: int | None = None
    iram_used_kb: int | None = None
    """Memory inside the chip; root only, up to L4T 32."""
    iram_total_kb: int | None = None
    iram_largest_free_block_kb: int | None = None
    cpu: tuple[CoreLoad, ...] = ()
    """In the order of the line; empty if the line has no whole list."""
    emc_percent: int | None = None
    """Load of the memory controller; mostly root only."""
    emc_mhz: int | None = None
    gpu_percent: int | None = None
    """Sampled at another instant than the rails: lines of 10.9 W show 0 %. ``None`` where only clocks are shown."""
    gpu_mhz: tuple[int, ...] = ()
    """Clock of each of its clusters, as many as the line shows."""
    gpu2_percent: int | None = None
    """The second cluster, where L4T 34 and 35 show it separately."""
    gpu2_mhz: tuple[int, ...] = ()
    engines: Mapping[str, EngineLoad] = {}
    """By name without ``_FREQ`` and ``_LOAD``."""
    ape_mhz: int | None = None
    """Clock of the audio processor."""
    mts_foreground_percent: int | None = None
    """Load by the instruction translator of the Denver cores."""
    mts_background_percent: int | None = None
    temperatures_c: Mapping[str, float] = {}
    """By zone name as printed (upper case up to L4T 35); zones without power or without a thermometer are left out."""
    temperatures_max_c: Mapping[str, float] = {}
    """Highest since tegrastats was started; L4T 39."""
    rails_mw: Mapping[str, int] = {}
    """Instantaneous power in the order of the line; may be negative by one LSB. Unconnected rails are left out."""
    rails_average_mw: Mapping[str, int] = {}
    """Mean since tegrastats was started: it belongs to no window of time."""
    rails_max_mw: Mapping[str, int] = {}
    """Highest since tegrastats was started; L4T 39."""

    def at(self, monotonic_ns: int, before: StampedSample | None) -> StampedSample:
        """Keep what figures need, and share what did not change since the sample ``before``."""
        cpu, temperatures_c, ram_total_mb = self.cpu, self.temperatures_c, self.ram_total_mb
        if before is not None:
            cpu = before.cpu if before.cpu == cpu else cpu
            temperatures_c = before.temperatures_c if before.temperatures_c == temperatures_c else temperatures_c
            ram_total_mb = before.ram_total_mb if before.ram_total_mb == ram_total_mb else ram_total_mb
        return StampedSample(monotonic_ns, self.is_simulated, ram_total_mb, cpu, temperatures_c, self.rails_mw)


class StampedSample(msgspec.Struct, frozen=True, gc=False):
    """What figures need of a sample, and when its line arrived: the samples of a day have to fit in memory."""

    monotonic_ns: int
    is_simulated: bool
    ram_total_mb: int | None
    cpu: tuple[CoreLoad, ...]
    temperatures_c: Mapping[str, float]
    rails_mw: Mapping[str, int]
