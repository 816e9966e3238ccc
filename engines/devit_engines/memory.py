"""How much memory is free: CPU and GPU of a Jetson share it."""

from __future__ import annotations

from pathlib import Path

from devit_contract.errors import EngineError


def available_bytes(root: Path = Path("/")) -> int:
    """Read what the kernel thinks can be had without swapping.

    Raises:
        EngineError: ``proc/meminfo`` under ``root`` does not say how much there is.
    """
    path = root / "proc" / "meminfo"
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError) as err:
        raise EngineError(f"{path}: expected MemAvailable in kB, found none: is this Linux?") from err
