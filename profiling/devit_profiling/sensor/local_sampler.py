"""Samples the power of this machine, without node or agent."""

from __future__ import annotations

import select
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from devit_contract.errors import EnergyError
from devit_contract.wire.messages import PowerLine, SamplingCost
from devit_profiling.sensor.hwmon_rails import find_rails
from devit_profiling.sensor.sampler import PowerSampler


def find_sensor(root: Path = Path("/")) -> tuple[str, ...]:
    """Choose the command that samples this machine: ``tegrastats`` where it is installed, else the chips themselves.

    ``root`` holds ``sys``. Any other than ``/`` is a simulated machine, which has no ``tegrastats``.

    Raises:
        EnergyError: This machine has neither.
    """
    tegrastats = shutil.which("tegrastats") if root == Path("/") else None
    if tegrastats is not None:
        return (tegrastats,)
    found = find_rails(root)
    if found.rails:
        return (sys.executable, "-m", "devit_profiling.sensor.hwmon", "--root", str(root))
    why = "; ".join(found.notes) or "found neither"
    raise EnergyError(f"expected tegrastats on the PATH or a power monitor chip, {why}: this machine has no sensor")


class LocalSampler(PowerSampler):
    """Collects the lines of this machine's sensor, in a context manager.

    Between two calls lines wait in the pipe, which holds 64 KiB; those of tegrastats then get one stamp.
    """

    def __init__(self, interval_ms: int = 100, *, root: Path = Path("/"), command: Sequence[str] = ()) -> None:
        """Choose the sensor by :func:`find_sensor`, or take this command's; nothing is started yet.

        Raises:
            EnergyError: This machine has no sensor.
        """
        self.command = tuple(command) or find_sensor(root)
        super().__init__(self.command, interval_ms)
        self.lines: list[PowerLine] = []
        """All lines so far."""
        self.problem = ""
        """Why no more lines will come; empty while sampling continues."""
        self._cpu_ns = 0

    @property
    def whole_cost(self) -> SamplingCost | None:
        """Cost of sampling so far, this process' reading included; ``None`` before the second sample."""
        return self.cost(self._cpu_ns / 1e9)

    def collect(self, duration_s: float) -> None:
        """Collect lines for a while; end early, with :attr:`problem`, where the program ends."""
        end_s = time.monotonic() + duration_s
        start_ns = time.thread_time_ns()
        while not self.problem and (left_s := end_s - time.monotonic()) > 0:
            if select.select([self], [], [], left_s)[0]:
                try:
                    self.lines += self.read_lines()
                except EnergyError as err:
                    self.problem = str(err)
        self._cpu_ns += time.thread_time_ns() - start_ns
