"""Which part of the GPU this process gets where MIG, Multi-Instance GPU, divides it: on Thor, from JetPack 7.0 on.

The driver shows each part as a folder (MIG user guide, "Device Nodes and Capabilities"), ``nvidia-smi -L`` its kind::

    GPU 0: NVIDIA Thor (UUID: 54d0709b-...)
      MIG 2g.0gb      Device  0: (UUID: MIG-0c75...)
      MIG 1g.0gb      Device  1: (UUID: MIG-1b2c...)

CUDA gives a process one of them, which it then calls "NVIDIA Thor MIG 2g.0gb": the one that ``CUDA_VISIBLE_DEVICES``
names, else the first. None of our tests has run on a divided GPU.
"""

from __future__ import annotations

import re
from pathlib import Path

UNKNOWN = "MIG of unknown size"
_FOLDERS = "proc/driver/nvidia/capabilities/gpu*/mig/gi*/ci*"
_LINE = re.compile(r"^\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-\S+)\)", re.MULTILINE)
_ANSWER_S = 10.0


def count_instances(root: Path) -> int:
    """Count the parts, 0 where the GPU is whole: Thor takes two at most."""
    return len(list(root.glob(_FOLDERS)))


def chosen_instance(listing: str, visible: str) -> str:
    """Name the part by what ``nvidia-smi -L`` prints and ``CUDA_VISIBLE_DEVICES`` holds.

    Its size is named and not its UUID, for an engine fits every part of that size.
    """
    found = _LINE.findall(listing)
    first = visible.partition(",")[0].strip()
    if first not in ("", "0"):  # the start of a UUID is enough for CUDA, if there is no other such
        found = [each for each in found if first.startswith("MIG-") and each[1].startswith(first)]
        found = found if len(found) == 1 else []
    return f"MIG {found[0][0]}" if found else UNKNOWN


def list_gpus() -> str:
    """Ask ``nvidia-smi -L``; empty where it is absent, as in most containers, or does not answer."""
    import subprocess  # which an agent on a whole GPU never needs

    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
