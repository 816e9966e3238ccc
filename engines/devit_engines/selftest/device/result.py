"""What a check of the ways to CUDA found: one row for each way and check."""

from __future__ import annotations

from typing import Literal

import msgspec

from devit_contract.choices import CudaChoice

Verdict = Literal["pass", "fail", "skipped"]


class Gpu(msgspec.Struct, frozen=True, tag=True):
    """The GPU, as its driver describes it."""

    name: str
    """As ``NVIDIA H200``, or ``Orin``."""
    compute_capability: str
    """As ``sm_87``."""
    driver_cuda: str
    """Newest CUDA that the driver speaks, as ``12.6``."""
    memory_mib: int
    """Of the whole GPU."""
    shares_memory: bool
    """Whether it shares the CPU's memory, as on a Jetson."""


class Row(msgspec.Struct, frozen=True, tag=True):
    """One check by one way."""

    way: CudaChoice
    """How Python reached CUDA: ``ctypes``, ``cuda-bindings`` or ``pycuda``."""
    check: str
    """Name of the check, as in the table."""
    verdict: Verdict
    ms: float | None
    """What the check took; absent where it did not run."""
    note: str | None = None
    """Why it failed or was skipped; figures of one that passed."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Why a process could not begin its checks."""

    why: str
    """One line, written for the user."""


class DeviceTest(msgspec.Struct, frozen=True):
    """What ``devit selftest --device --json`` prints."""

    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    """Of devit, Python and Linux; of NVIDIA's driver and L4T where they say so."""
    machine: str
    """Its board or CPU."""
    gpu: Gpu
    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.verdict == "fail")
