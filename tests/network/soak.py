"""Does a cell leak? Null engines, frames at a steady rate, resident memory of every process once a second.

``python tests/network/soak.py --seconds 600 --rate 200`` prints a table; it ends with 1 where memory rises by more than
1 MiB a minute (least squares, after a warm-up), or a frame was lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.network.open_loop import OpenLoop, Record

from devit_contract.artefacts.manifest import Bundle
from devit_pipeline.local_cell import LocalCell, LocalDevice

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
LIMIT_MIB_PER_MIN = 1.0
_PERIOD_S = 1.0


@dataclass(frozen=True)
class Memory:
    """Resident memory of one process over time."""

    name: str
    time_s: list[float]
    resident_mib: list[float]

    def slope_mib_per_min(self) -> float:
        """Fit a straight line by least squares."""
        return 60.0 * float(np.polyfit(self.time_s, self.resident_mib, 1)[0])


def soak(folder: Path, *, seconds: float, rate_hz: float, warm_up_s: float) -> tuple[Record, list[Memory]]:
    """Run a cell of two agents; memory is that of the time after the warm-up."""
    devices = [LocalDevice(f"jetson{index + 1}", index, engine="null") for index in range(2)]
    images = Bundle(TINY).golden()["images"]
    frames = round(seconds * rate_hz)
    with ExitStack() as stack:
        cell = stack.enter_context(LocalCell(TINY, folder, devices))
        traffic = stack.enter_context(OpenLoop(cell, list(images), rate_hz=rate_hz, frames=frames))
        memory = {name: Memory(name, [], []) for name in cell.pids}
        start_s = time.monotonic()
        due_s = warm_up_s
        while due_s < seconds and traffic.wait_for(round(due_s * rate_hz), seconds):
            for name, pid in cell.pids.items():
                memory[name].time_s.append(time.monotonic() - start_s)
                memory[name].resident_mib.append(resident_mib(pid))
            due_s += _PERIOD_S
        return traffic.finish(), list(memory.values())


def resident_mib(pid: int) -> float:
    """Read how much of a process's memory is in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has ended")


def main(arguments: Sequence[str]) -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: 600)")
    parser.add_argument("--rate", type=float, default=200.0, help="frames a second (default: 200)")
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds that do not count (default: 20)")
    options = parser.parse_args(arguments)
    if options.seconds < options.warm_up + 3 * _PERIOD_S:
        parser.error("expected some seconds after the warm-up: give more --seconds")
    with tempfile.TemporaryDirectory() as folder:
        record, memory = soak(Path(folder), seconds=options.seconds, rate_hz=options.rate, warm_up_s=options.warm_up)
    print(f"{'process':<10} {'first MiB':>10} {'last MiB':>10} {'MiB/min':>10}")
    slopes = [process.slope_mib_per_min() for process in memory]
    for process, slope in zip(memory, slopes, strict=True):
        first, last = process.resident_mib[0], process.resident_mib[-1]
        print(f"{process.name:<10} {first:>10.2f} {last:>10.2f} {slope:>10.3f}")
    print(record.summary())
    lost = record.states["NONE"]
    is_steady = max(slopes) <= LIMIT_MIB_PER_MIN
    print(f"{lost} lost; memory {'is steady' if is_steady else f'rises by more than {LIMIT_MIB_PER_MIN} MiB/min'}")
    return 0 if is_steady and not lost else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
