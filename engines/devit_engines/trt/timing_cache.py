"""TensorRT's timing cache as a file: one for each TensorRT, device and compute capability, shared by all builds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from devit_contract.artefacts.files import exclusive_lock, write_bytes
from devit_contract.artefacts.regular import read_regular
from devit_contract.errors import InputError


def timing_cache_path(store: Path, version: str, device: str, capability: str) -> Path:
    """Path of the cache for one kind of device: ``<store>/timing/10.3.0-nvidia-jetson-agx-orin-sm_87.cache``."""
    name = re.sub(r"[^a-z0-9_.]+", "-", f"{version}-{device}-{capability}".lower())
    return store / "timing" / f"{name}.cache"


def read_cache(path: Path) -> bytes:
    """Content of the file; empty if it cannot be read, which only costs time. TensorRT refuses a damaged one."""
    try:
        return read_regular(path)
    except OSError:
        return b""


def merge_into(path: Path, new: bytes, merge: Callable[[bytes, bytes], bytes]) -> None:
    """Add what a build has learned to what others have written since, alone with the file.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.with_suffix(".lock")):
            write_bytes(path, merge(read_cache(path), new))
    except OSError as err:
        raise InputError(f"{path}: cannot be written ({err.strerror}): choose another store with --store") from err
