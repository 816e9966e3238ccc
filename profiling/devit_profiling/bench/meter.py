"""This device's power while something else in the same process keeps it busy: the meter of ``devit build --prefer``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from devit_contract.errors import EnergyError
from devit_contract.machine import board_compatible, board_model
from devit_contract.wire.messages import Description
from devit_profiling.figures.energy import Minimum, measure_window
from devit_profiling.figures.settling import GUARD_TAUS
from devit_profiling.load.local_run import wait_for_first_sample
from devit_profiling.sensor.boards import BoardTotal, why_no_total
from devit_profiling.sensor.local_sampler import LocalSampler
from devit_profiling.sensor.sensor_lines import parse_sensor_line

_INTERVAL_MS = 100
_BLOCK = Minimum(2.0, 10)


class LocalMeter:
    """A sensor that samples; it takes no thread, so whoever uses it calls :meth:`collect` between its own steps."""

    def __init__(self, sampler: LocalSampler, total: BoardTotal, scope: str, settle_s: float) -> None:
        """Take a running sampler, and the rule of its board."""
        self.settle_s, self.block_s = settle_s, _BLOCK.duration_s
        self.scope = scope
        self._sampler = sampler
        self._total = total
        self._time_s: list[float] = []
        self._power_w: list[float] = []

    @property
    def is_simulated(self) -> bool:
        """Whether a sample, or the board, says so."""
        return self._total.is_simulated

    def collect(self) -> None:
        """Take the lines that have come, without waiting; an :class:`EnergyError` says that there will be no more."""
        for line in self._sampler.read_lines():
            sample = parse_sensor_line(line.text)
            if sample is not None and (power_mw := self._total.add(sample)) is not None:
                self._time_s.append(line.monotonic_ns / 1e9)
                self._power_w.append(power_mw / 1000)

    def mean_w(self, start_s: float, end_s: float) -> float:
        """Give the mean power over a stretch of the monotonic clock, as far as samples cover it.

        Raises:
            EnergyError: There are fewer than ten samples in it.
        """
        power_w, time_s = np.array(self._power_w), np.array(self._time_s)
        return measure_window(power_w, time_s, start_s, end_s, Minimum(0.0, _BLOCK.samples)).mean_w


@contextmanager
def open_meter(command: Sequence[str] = ()) -> Iterator[LocalMeter]:
    """Start this machine's sensor, or the command of one, and wait for its first sample.

    Raises:
        EnergyError: There is none, it prints nothing, or nobody knows which of its rails make the board's total.
    """
    with LocalSampler(_INTERVAL_MS, command=command) as sampler:
        wait_for_first_sample(sampler, _INTERVAL_MS)
        about = Description(board_model(), "", "", "", 1, compatible=board_compatible())
        total = BoardTotal(about)
        samples = [sample for line in sampler.lines if (sample := parse_sensor_line(line.text)) is not None]
        rails = tuple(rail for sample in samples for rail in sample.rails_mw)
        if not any(total.add(sample) is not None for sample in samples) or total.board is None:
            raise EnergyError(why_no_total(total.board, about.board_model, rails))
        yield LocalMeter(sampler, total, total.board.scope, GUARD_TAUS * total.board.tau_s)
