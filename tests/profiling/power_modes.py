"""A SIMULATED Jetson with power modes: stand-ins for ``nvpmodel`` and ``tegrastats``, to be put on a test's PATH.

What ``nvpmodel`` sets, the simulated board draws: every mode lets a busy core ask for a share of the GPU.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from devit_profiling.sensor.board_table import ORIN_NANO
from devit_profiling.simulator.board import SimulatedBoard
from devit_profiling.simulator.program import CpuLoad

SHARES = {0: 1.0, 1: 0.1, 2: 0.05}
"""Of the GPU, by mode."""
NVPMODEL = """#!/bin/sh
# SIMULATED: modes 0 to 2 can be set, 3 needs a reboot, others fail. The words are those of L4T 36.
here={here}
echo "$*" >> "$here/calls"
case "$1 $2" in
"-q ") echo "NVPM WARN: fan mode is not set!"; echo "NV Power Mode: SIMULATED_$(cat "$here/mode")"; cat "$here/mode" ;;
"-m 0" | "-m 1" | "-m 2") echo "$2" > "$here/mode" ;;
"-m 3")
  echo "NVPM WARN: Golden image context is already created"
  echo "NVPM WARN: Reboot required for changing to this power mode: 3"
  echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
  read -r answer
  case "$answer" in YES | yes) touch "$here/rebooted" ;; esac
  echo "NVPM ERROR: optMask is 1, no request for power mode"
  exit 255 ;;
*) echo "NVPM ERROR: failed to set power mode!"; exit 255 ;;
esac
"""


@dataclass(frozen=True)
class ModeBoard:
    """The simulated board's files."""

    folder: Path

    @property
    def path(self) -> Path:
        """Folder for the PATH."""
        return self.folder / "bin"

    @property
    def mode(self) -> int:
        """What it is set to."""
        return _number(self.folder / "mode")

    @property
    def calls(self) -> list[str]:
        """What ``nvpmodel`` was asked."""
        return (self.folder / "calls").read_text().splitlines()

    @property
    def has_rebooted(self) -> bool:
        """Whether the question was answered with yes."""
        return (self.folder / "rebooted").exists()


def mode_board(folder: Path, mode: int) -> ModeBoard:
    """Set one up."""
    board = ModeBoard(folder)
    board.path.mkdir()
    (folder / "mode").write_text(f"{mode}\n")
    (folder / "calls").touch()
    tegrastats = f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} "$@"\n'
    for name, text in (("nvpmodel", NVPMODEL.format(here=folder)), ("tegrastats", tegrastats)):
        (board.path / name).write_text(text)
        (board.path / name).chmod(0o755)
    return board


def engine_command(board: ModeBoard, bundle: Path, paces_ms: dict[int, int]) -> list[str]:
    """A busy core instead of an engine, as fast as the mode lets it be; its process id is noted for ``tegrastats``."""
    cases = " ".join(f"{mode}) pace={pace};;" for mode, pace in paces_ms.items())
    script = (
        f'echo $$ > {board.folder}/engine.pid; case "$(cat {board.folder}/mode)" in {cases} esac; '
        f"exec {sys.executable} -m devit_engines.bench.worker --bundle {bundle} --engine busy:$pace"
    )
    return ["/bin/sh", "-c", script]


def main() -> None:
    """Print lines of a simulated Orin Nano until the reader closes."""
    folder, period_s = Path(sys.argv[1]), int(sys.argv[3]) / 1000
    board, start_s = SimulatedBoard(ORIN_NANO, seed=1), time.monotonic()
    watched, cpu = 0, None
    while True:
        time.sleep(period_s)
        pid = _number(folder / "engine.pid")
        if pid != watched:
            watched, cpu = pid, CpuLoad(pid)
        now_s = time.monotonic() - start_s
        used = cpu.share(now_s) if cpu is not None else None
        print(board.line(now_s, SHARES[_number(folder / "mode")] * (used or 0.0)), flush=True)


def _number(path: Path) -> int:
    """Read a file that a shell may be writing just now; 0 where there is none yet."""
    while path.exists():
        text = path.read_text().strip()
        if text:
            return int(text)
    return 0


if __name__ == "__main__":
    main()
