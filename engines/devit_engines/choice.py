"""Opens the engine that ``--engine`` names: a built one, as fast as it is or slowed down, or a stand-in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import BackendChoice, Precision, Variant
from devit_contract.errors import InputError
from devit_engines.building.backends import DEFAULT_SETTINGS, RunSettings
from devit_engines.building.build_all import find_engine
from devit_engines.building.store import Store
from devit_engines.engine import Engine, EngineSpec, ModelRef, role_of
from devit_engines.null import NullEngine, PacedEngine, busy


def is_built(choice: str) -> bool:
    """Tell whether a choice means an engine that was built, and not a stand-in."""
    return choice.partition(":")[0] == "built"


@dataclass(frozen=True)
class OpenedEngine:
    """A loaded engine, and what it is called."""

    title: str
    """For people: ``TensorRT 10.3.0, fp16``, ``null engine``."""
    model_sha256: str
    """Of the graph that it computes; a stand-in gives that of variant fp32."""
    engine: Engine
    variant: Variant = "fp32"
    doubt: str = ""
    """As of :class:`~devit_engines.building.build_all.StoredEngine`."""


def open_engine(
    choice: str,
    bundle: Bundle,
    store: Store,
    model: ModelRef,
    *,
    backend: BackendChoice = "auto",
    precision: Precision | None = None,
    settings: RunSettings = DEFAULT_SETTINGS,
    check_size: Callable[[int], None] = lambda _size_bytes: None,
) -> OpenedEngine:
    """Load a model's engine that :func:`~devit_engines.building.build_all.find_engine` finds, or open a stand-in.

    ``built:MS`` is the built engine as on a slower device: each call takes at least so many milliseconds. Of the
    stand-ins, ``null`` answers zeros at once, ``paced:MS`` takes that long for each answer, and ``busy:MS`` keeps a
    core busy for that long. ``check_size`` is called with the size of a built engine's file in bytes before it is
    loaded.

    Raises:
        InputError: There is no such choice.
        NotBuiltError: The engine was not built here.
        EngineError: The back end cannot load it.
    """
    kind, _, pace = choice.partition(":")
    pace_ms = float(pace) if pace.replace(".", "", 1).isdigit() else None
    if is_built(choice) and (pace_ms is not None or choice == "built"):
        stored = find_engine(bundle, store, model, backend=backend, precision=precision)
        if stored.record is not None:
            check_size(stored.record.file.size_bytes)
        loaded = stored.load(settings)
        if pace_ms is None:
            return OpenedEngine(stored.title, stored.key.model_sha256, loaded, stored.key.variant, stored.doubt)
        slowed, title = PacedEngine(loaded, pace_ms), f"{stored.title}, slowed to {pace_ms:g} ms"
        return OpenedEngine(title, stored.key.model_sha256, slowed, stored.key.variant, stored.doubt)
    role, index = role_of(model)
    output_dim = bundle.manifest.graph(role, index).output_dim
    null = NullEngine(EngineSpec(choice, bundle.manifest.preprocess.shape, output_dim))
    engine: Engine
    if choice == "null":
        engine = null
    elif kind in ("paced", "busy") and pace_ms is not None:
        engine = PacedEngine(null, pace_ms, wait=busy if kind == "busy" else time.sleep)
    else:
        raise InputError(f"--engine {choice}: expected built, built:MS, null, paced:MS or busy:MS, e.g. paced:5")
    return OpenedEngine(f"{choice} engine", bundle.manifest.file(role, device=index, variant="fp32").sha256, engine)
