"""The table of back ends: who turns an ONNX graph into an engine, and which precision rungs it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from devit_contract.choices import CudaChoice, HostMemory
from devit_contract.errors import EngineError, InputError
from devit_engines import ort
from devit_engines.board import Board
from devit_engines.engine import CheckedEngine, EngineSpec
from devit_engines.trt import plan

Report = Callable[[float, str], None]
"""Told the seconds since a build began and what it is doing."""


@dataclass(frozen=True)
class BuildRequest:
    """What an engine is built from."""

    name: str
    """For messages: ``submodel 0``."""
    rung: str
    graph: bytes
    """The rung's ONNX file."""
    plain_graph: bytes
    """That of rung fp32."""
    fp32_nodes: tuple[str, ...]
    """Nodes of the fp32 graph that the rung keeps in FP32."""
    board: Board
    store: Path
    """Its folder, where back ends may keep what makes the next build faster."""
    drafts: Path
    """Begin of the names of what is thrown away after the build, or swept away after a killed one."""


@dataclass(frozen=True)
class Built:
    """An engine's file, and how it came about."""

    content: bytes
    route: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSettings:
    """How an engine is run; nothing here changes what it computes."""

    threads: int = 1
    """Of ONNX Runtime, inside one operator."""
    cuda: CudaChoice = "auto"
    host_memory: HostMemory = "pinned"
    use_graph: bool = True
    """Replay runs as a CUDA graph."""


AS_USUAL = RunSettings()


@dataclass(frozen=True)
class Backend:
    """One row. No function here is called, and no library imported, before it is needed."""

    name: str
    title: str
    """For people."""
    file_name: str
    """Of the engine in its folder of the store."""
    rungs: tuple[str, ...]
    """Precision rungs that it can run as they are meant."""
    options: tuple[str, ...]
    """Build options that are part of the key, ``name=value``."""
    has_graphs: bool
    """Whether runs may be replays, which are judged apart."""
    version: Callable[[], str]
    """The installed version without importing the library; an :class:`EngineError` says how to install it."""
    build: Callable[[BuildRequest, Report], Built]
    load: Callable[[bytes, EngineSpec, RunSettings], CheckedEngine]
    """Content of an engine, what it has to be, and how it is run, to the engine."""

    @property
    def is_installed(self) -> bool:
        """Whether its library is there."""
        try:
            self.version()
        except EngineError:
            return False
        return True


def _build_plan(request: BuildRequest, report: Report) -> Built:
    from devit_engines.trt.child import build_in_child, workspace_bytes
    from devit_engines.trt.timing_cache import timing_cache_path
    from devit_engines.trt.worker import WorkerRequest

    board = request.board
    cache = timing_cache_path(request.store, plan.installed_version(), board.name, board.compute_capability)
    order = WorkerRequest(
        name=request.name,
        rung=request.rung,
        fp32_nodes=request.fp32_nodes,
        workspace_bytes=workspace_bytes(),
        timing_cache=str(cache),
    )
    made = build_in_child(order, request.graph, request.plain_graph, request.drafts, report)
    return Built(made.content, made.route, made.warnings)


def _load_plan(content: bytes, spec: EngineSpec, settings: RunSettings) -> CheckedEngine:
    from devit_engines.cuda.api import open_cuda
    from devit_engines.trt.engine import TrtEngine

    plan.check_plan(content, plan.installed_version(), spec.name)
    return TrtEngine(
        content,
        spec,
        lambda: open_cuda(settings.cuda),
        host_memory=settings.host_memory,
        use_graph=settings.use_graph,
    )


BACKENDS: dict[str, Backend] = {
    "tensorrt": Backend(
        name="tensorrt",
        title="TensorRT",
        file_name="engine.plan",
        rungs=("fp16", "fp16-attn32", "fp32"),
        options=("batch=1", "tf32=off"),
        has_graphs=True,
        version=plan.installed_version,
        build=_build_plan,
        load=_load_plan,
    ),
    "ort": Backend(
        name="ort",
        title="ONNX Runtime CPU",
        file_name="model.onnx",
        # ONNX Runtime's CPU provider computes an fp16 graph in fp32 between Casts: slower, and its parity proves
        # nothing about fp16.
        rungs=("fp32",),
        options=(),
        has_graphs=False,
        version=ort.installed_version,
        # ONNX Runtime optimises at load: the graph itself is the engine.
        build=lambda request, report: Built(request.graph),
        load=lambda content, spec, settings: ort.OrtEngine(content, spec, threads=settings.threads),
    ),
}
CHOICES = ("auto", *BACKENDS)


def backend_of(name: str) -> Backend:
    """Find a back end by its name; ``auto`` is TensorRT where it is installed, else ONNX Runtime.

    Raises:
        InputError: There is none of that name.
    """
    if name == "auto":
        name = "tensorrt" if BACKENDS["tensorrt"].is_installed else "ort"
    if name not in BACKENDS:
        raise InputError(f"back end {name}: expected one of {', '.join(CHOICES)}: choose one of these")
    return BACKENDS[name]
