"""Cells made by hand for the tests of plans: Gaussian classes, a linear head, and devices of a given speed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from devit_contract.artefacts.calibration import Calibration, calibrate
from devit_contract.artefacts.head import FusionHead, FusionStatistics
from devit_contract.artefacts.manifest import Bundle
from devit_profiling.plan.cell import Cell, PlannedDevice
from devit_profiling.plan.device_profile import SCHEMA, DeviceProfile
from devit_profiling.plan.simulation import Server

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
CLASSES, IMAGES = 6, 2000


@lru_cache
def calibration_of(noises: tuple[float, ...]) -> Calibration:
    """Calibrate devices whose features are the class and noise of that size."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, CLASSES, 2 * IMAGES)
    parts = [np.eye(CLASSES)[labels] + noise * rng.normal(size=(2 * IMAGES, CLASSES)) for noise in noises]
    features = np.concatenate(parts, 1)
    statistics = FusionStatistics(features.mean(0), np.cov(features.T))
    weight = np.linalg.solve(statistics.covariance, np.cov(features.T, np.eye(CLASSES)[labels].T)[:-CLASSES, -CLASSES:])
    head = FusionHead((CLASSES,) * len(noises), weight.T, -weight.T @ statistics.mean, statistics)
    return calibrate(head, features[:IMAGES].astype(np.float32), labels[:IMAGES])


def made_cell(
    times_ms: Sequence[float],
    noises: Sequence[float] = (0.4, 0.4, 0.4),
    *,
    idle_w: float | None = 2.0,
    above_idle_j: float | None = 0.05,
    baseline: PlannedDevice | None = None,
    has_calibration: bool = True,
) -> Cell:
    """Make a cell whose devices always take the same time."""
    devices = [
        PlannedDevice(f"dev{number}", Server(np.full(3, time_ms), 1.0), idle_w, above_idle_j)
        for number, time_ms in enumerate(times_ms)
    ]
    calibration = calibration_of(tuple(noises)) if has_calibration else None
    return Cell(tuple(devices), Bundle(TINY).manifest, calibration, 2, 0.0, "given", baseline=baseline)


def made_profile(device: str = "dev0", model: int = 0, time_ms: float = 10.0) -> DeviceProfile:
    """Make the profile of a device that always takes the same time."""
    return DeviceProfile(
        schema=SCHEMA,
        device=device,
        model=model,
        macs=0,
        engine="stand-in, fp32",
        board="made by hand",
        l4t="",
        threads=1,
        software="0",
        measured_utc="2026-01-05 00:00:00",
        inferences=100,
        p50_ms=time_ms,
        p99_ms=time_ms,
        quantiles_ms=(time_ms, time_ms),
        not_measured="made by hand",
    )
