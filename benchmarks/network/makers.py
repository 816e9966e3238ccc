"""Engines by name, made in the process that runs them: what :mod:`bare` starts its agents with."""

from __future__ import annotations

from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import load_engine
from devit_engines.building.store import Store
from devit_engines.engine import Engine, EngineSpec
from devit_engines.null import NullEngine, PacedEngine


def paced(pace_ms: float, shape: tuple[int, int, int], dim: int) -> Engine:
    """Make what ``edge-agent --engine paced:MS`` makes."""
    return PacedEngine(NullEngine(EngineSpec("paced", shape, dim)), pace_ms)


def built(bundle: Path, store: Path, device: int) -> Engine:
    """Load what ``devit build`` made, one thread."""
    return load_engine(Bundle(bundle), Store(store), device, backend="ort")
