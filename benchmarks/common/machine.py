"""The machine that a benchmark runs on, and what else it did meanwhile."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import msgspec
import zmq

CPU_STATES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""First columns of ``cpu`` in /proc/stat, see proc(5)."""


class Machine(msgspec.Struct, frozen=True):
    """Where it ran, and what else ran there."""

    cpu: str
    cores: int
    python: str
    pyzmq: str
    libzmq: str
    devit: str
    load_before: tuple[float, float, float]
    """Load average over 1, 5 and 15 minutes."""
    load_after: tuple[float, float, float]
    cpu_share: dict[str, float]
    """Of all cores' time during the run, by /proc/stat's states; ``nice`` is other people's background work."""

    def lines(self) -> list[str]:
        """Say it to people."""
        load = " / ".join(f"{number:.2f}" for number in (self.load_before[0], self.load_after[0]))
        shares = ", ".join(f"{state} {share:.0%}" for state, share in self.cpu_share.items() if share >= 0.005)
        return [
            f"{self.cores} cores of {self.cpu}; Python {self.python}, pyzmq {self.pyzmq}, "
            f"libzmq {self.libzmq}, devit {self.devit}",
            f"load average before / after: {load}; all cores' time during the run: {shares}",
        ]


class Watch:
    """Looks at the machine when a benchmark starts, and again when it is done."""

    def __init__(self) -> None:
        """Take the first look."""
        self._cores = len(os.sched_getaffinity(0))
        self._load = os.getloadavg()
        self._ticks = _cpu_ticks()

    def machine(self) -> Machine:
        """Take the second look."""
        ticks = {state: count - self._ticks[state] for state, count in _cpu_ticks().items()}
        whole = max(1, sum(ticks.values()))
        return Machine(
            cpu=_cpu_name(),
            cores=self._cores,
            python=platform.python_version(),
            pyzmq=zmq.__version__,
            libzmq=zmq.zmq_version(),
            devit=version("devit"),
            load_before=self._load,
            load_after=os.getloadavg(),
            cpu_share={state: round(count / whole, 3) for state, count in ticks.items() if count},
        )


def two_cores() -> tuple[int, int]:
    """Choose a core for the node and one for everybody else; a machine of one core has to share it."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


def pin(pid: int, core: int) -> None:
    """Keep all threads that a process has by now on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def _cpu_ticks() -> dict[str, int]:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return dict(zip(CPU_STATES, map(int, fields[1:]), strict=False))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
