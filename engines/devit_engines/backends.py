"""The table of back ends: who turns an ONNX graph into an engine, and which precision rungs it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devit_contract.errors import EngineError
from devit_engines import ort
from devit_engines.engine import CheckedEngine, EngineSpec


@dataclass(frozen=True)
class Backend:
    """One row. No function here is called, and no library imported, before it is needed."""

    name: str
    file_name: str
    """Of the engine in its folder of the store."""
    rungs: tuple[str, ...]
    """Precision rungs that it can run as they are meant."""
    options: tuple[str, ...]
    """Build options that are part of the key, ``name=value``."""
    version: Callable[[], str]
    """The installed version without importing the library; an :class:`EngineError` says how to install it."""
    build: Callable[[bytes], bytes]
    """Content of an ONNX file to content of an engine."""
    load: Callable[[bytes, EngineSpec, int], CheckedEngine]
    """Content of an engine, what it has to be, and CPU threads, to the engine."""


BACKENDS: dict[str, Backend] = {
    "ort": Backend(
        name="ort",
        file_name="model.onnx",
        # ONNX Runtime's CPU provider computes an fp16 graph in fp32 between Casts: slower, and its parity proves
        # nothing about fp16.
        rungs=("fp32",),
        options=(),
        version=ort.installed_version,
        # ONNX Runtime optimises at load: the graph itself is the engine.
        build=lambda model: model,
        load=lambda content, spec, threads: ort.OrtEngine(content, spec, threads=threads),
    ),
}


def backend_of(name: str) -> Backend:
    """Find a back end by its name.

    Raises:
        EngineError: There is none of that name.
    """
    if name not in BACKENDS:
        raise EngineError(f"back end {name}: expected one of {', '.join(BACKENDS)}: choose one of these")
    return BACKENDS[name]
