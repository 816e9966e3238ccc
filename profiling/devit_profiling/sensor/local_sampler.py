"""Samples the power of the machine that this runs on, without node or agent."""

from __future__ import annotations

import select
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from devit_contract.errors import EnergyError
from devit_contract.wire.messages import PowerLine, SamplingCost
from devit_profiling.sensor.hwmon_rails import find_rails
from devit_profiling.sensor.sampler import PowerSampler


def find_sensor(root: Path = Path("/")) -> tuple[str, ...]:
    """Choose the command that samples this machine: ``tegrastats`` where it is installed, else the chips themselves.

    Args:
        root: Where ``sys`` is looked for. Any other folder than ``/`` describes a simulated machine, which has no
            ``tegrastats``.

    Raises:
        EnergyError: There is neither.
    """
    tegrastats = shutil.which("tegrastats") if root == Path("/") else None
    if tegrastats is not None:
        return (tegrastats,)
    found = find_rails(root)
    if found.rails:
        return (sys.executable, "-m", "devit_profiling.sensor.hwmon", "--root", str(root))
    why = "; ".join(found.notes) or "found neither"
    raise EnergyError(f"expected tegrastats on the PATH or a power monitor chip, {why}: this machine has no sensor")


class LocalSampler:
    """Gathers the lines of this machine's sensor: a context manager; collect in it as often as wanted.

    Between two calls lines wait in the pipe, which holds 64 KiB: those of tegrastats then come with one stamp.
    """

    def __init__(self, interval_ms: int = 100, *, root: Path = Path("/"), command: Sequence[str] = ()) -> None:
        """Choose the sensor; nothing is started yet.

        Args:
            interval_ms: Nominal period in milliseconds.
            root: Of the machine, see :func:`find_sensor`.
            command: The sensor's command, where it is known better.

        Raises:
            EnergyError: This machine has no sensor.
        """
        self.command = tuple(command) or find_sensor(root)
        self.lines: list[PowerLine] = []
        """All that have come."""
        self.problem = ""
        """Why no more will come; empty while sampling goes on."""
        self._sampler = PowerSampler(self.command, interval_ms)
        self._cpu_ns = 0

    def __enter__(self) -> LocalSampler:
        """Start the sensor's program.

        Raises:
            EnergyError: It cannot be started.
        """
        self._sampler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._sampler.__exit__(kind, error, trace)

    @property
    def cost(self) -> SamplingCost | None:
        """What sampling has cost so far, this process' reading included; ``None`` before the second sample."""
        return self._sampler.cost(self._cpu_ns / 1e9)

    def collect(self, duration_s: float) -> None:
        """Take lines for a while; ends early, with :attr:`problem`, where the program does."""
        end_s = time.monotonic() + duration_s
        start_ns = time.thread_time_ns()
        while not self.problem and (left_s := end_s - time.monotonic()) > 0:
            if select.select([self._sampler], [], [], left_s)[0]:
                try:
                    self.lines += self._sampler.read_lines()
                except EnergyError as err:
                    self.problem = str(err)
        self._cpu_ns += time.thread_time_ns() - start_ns
