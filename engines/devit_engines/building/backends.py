"""The table of back ends: who turns an ONNX graph into an engine, and which precision variants it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from devit_contract.choices import BackendChoice, CudaChoice, HostMemory, Variant
from devit_contract.errors import EngineError, InputError
from devit_engines import ort
from devit_engines.engine import CheckedEngine, EngineSpec
from devit_engines.trt import plan
from devit_engines.trt.request import BuildRequest, Built, Report

BackendName = Literal["tensorrt", "ort"]


@dataclass(frozen=True)
class RunSettings:
    """How an engine is run; nothing here changes what it computes."""

    threads: int = 1
    """Of ONNX Runtime, inside one operator."""
    cuda: CudaChoice = "auto"
    host_memory: HostMemory = "pinned"
    use_graph: bool = True
    """Replay runs as a CUDA graph."""


DEFAULT_SETTINGS = RunSettings()


@dataclass(frozen=True)
class Backend:
    """One row. No library is imported before a function here needs it."""

    name: BackendName
    title: str
    """For people."""
    file_name: str
    """Of the engine in its folder of the store."""
    variants: tuple[Variant, ...]
    """Precision variants that it can run as they are meant."""
    options: tuple[str, ...]
    """Build options that are part of the key, ``name=value``."""
    has_graphs: bool
    """Whether runs may be replays, which are checked separately."""
    is_onnx: bool
    """Whether the engine is the bundle's ONNX file itself, so that its digest stands in the manifest."""
    run_options: Callable[[RunSettings], tuple[str, ...]]
    """Of the settings, those that decide how fast an engine runs, ``name=value``."""
    version: Callable[[], str]
    """The installed version without importing the library; an :class:`EngineError` says how to install it."""
    build: Callable[[BuildRequest, Report], Built]
    load: Callable[[bytes, EngineSpec, RunSettings], CheckedEngine]
    """From an engine's content, what it has to be, and how it is run."""

    @property
    def is_installed(self) -> bool:
        """Whether its library is installed."""
        try:
            self.version()
        except EngineError:
            return False
        return True


def _build_plan(request: BuildRequest, report: Report) -> Built:
    from devit_engines.trt.child import build_in_child

    return build_in_child(request, report)


def _load_plan(content: bytes, spec: EngineSpec, settings: RunSettings) -> CheckedEngine:
    from devit_engines.cuda.open import open_cuda
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
        variants=("fp8-fp16", "int8-fp16", "fp16", "fp16-attn32", "fp32"),
        options=("batch=1", "tf32=off"),
        has_graphs=True,
        is_onnx=False,
        run_options=lambda settings: (f"host_memory={settings.host_memory}",),
        version=plan.installed_version,
        build=_build_plan,
        load=_load_plan,
    ),
    "ort": Backend(
        name="ort",
        title="ONNX Runtime CPU",
        file_name="model.onnx",
        # ONNX Runtime's CPU provider computes an fp16 graph in fp32 between Casts: slower, and its parity proves
        # nothing about fp16. Of FP8 it has no products at all, and leaves a ReLU before it out (1.32, findings/).
        variants=("int8", "fp32"),
        options=(),
        has_graphs=False,
        is_onnx=True,
        run_options=lambda settings: (f"threads={settings.threads}",),
        version=ort.installed_version,
        # ONNX Runtime optimises at load: the graph itself is the engine.
        build=lambda request, report: Built(request.graph.read()),
        load=lambda content, spec, settings: ort.OrtEngine(content, spec, threads=settings.threads),
    ),
}


def backend_of(name: str) -> Backend:
    """Find a back end by its name; ``auto`` is TensorRT if it is installed, else ONNX Runtime.

    Raises:
        InputError: There is none of that name.
    """
    if name == "auto":
        name = "tensorrt" if BACKENDS["tensorrt"].is_installed else "ort"
    if name not in BACKENDS:
        raise InputError(f"unknown back end {name}: choose one of {', '.join(get_args(BackendChoice))}")
    return BACKENDS[name]
