"""The one module that knows how TensorRT 8.6, 10 and 11 differ; the library itself comes in as an argument.

===================== ============================================ ======================================
what                  8.6                                          10 and 11
===================== ============================================ ======================================
precision             the FP32 graph, flag ``FP16``, the variant's    the variant's own graph, strongly typed
                      FP32 nodes pinned layer by layer
INT8                  the variant's own graph, flags ``INT8`` and     the same
                      ``FP16``, pinned likewise
FP8                   refused                                      the same, on a GPU from SM 8.9 on
network flag          ``EXPLICIT_BATCH``                           ``STRONGLY_TYPED``
``IProgressMonitor``  absent                                       phases, and a way to cancel
===================== ============================================ ======================================

Every difference is found by asking whether a name exists, never by comparing versions.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from devit_contract.errors import EngineError
from devit_contract.machine import more_memory
from devit_engines.board import has_fp8
from devit_engines.engine import CannotCompileError
from devit_engines.trt.request import BuildRequest, Built, GraphFile

_KEPT_ERRORS = 4
Watch = Callable[[str], bool]
"""Called from TensorRT's threads with the current phase; False cancels the build."""


def can_be_cancelled(trt: ModuleType) -> bool:
    """Whether a build of this TensorRT listens; where it does not, only ending its process stops it."""
    return hasattr(trt, "IProgressMonitor")


def build_plan(
    trt: ModuleType, request: BuildRequest, workspace_bytes: int, timing_cache: bytes, watch: Watch
) -> Built:
    """Compile a graph for the GPU of this machine.

    A layer may use ``workspace_bytes`` of memory for its intermediate results; the timing cache is what former builds
    have learned, perhaps nothing.

    Raises:
        CannotCompileError: TensorRT refuses the graph, fails at it, or was cancelled; its own words are in the text.
        EngineError: TensorRT finds no GPU.
        InputError: A graph cannot be read.
        ManifestError: A graph has changed since the bundle was opened.
    """
    is_typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    if "fp8" in request.variant:
        _check_fp8(trt, request, is_typed)
    flags = () if is_typed else _precision_flags(request)
    log = _fresh_log(trt, request.name)
    builder = _made(trt.Builder, "a builder", request.name, log)
    flag = "STRONGLY_TYPED" if is_typed else "EXPLICIT_BATCH"
    network = builder.create_network(1 << int(getattr(trt.NetworkDefinitionCreationFlag, flag)))
    # Where flags lower the precision, the FP32 graph will do, but quantized numbers are in the variant's graph alone.
    _parse(trt, network, request, request.graph if is_typed or "INT8" in flags else request.fp32_graph, log)
    config = _configured(trt, builder, network, request, workspace_bytes)
    for each in flags:
        config.set_flag(getattr(trt.BuilderFlag, each))
    unpinned = _pin(trt, network, config, request) if "FP16" in flags else ()
    if not config.set_timing_cache(config.create_timing_cache(timing_cache), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # another device's: start a new one
    if can_be_cancelled(trt):
        config.progress_monitor = _monitor(trt, watch)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise CannotCompileError(f"{request.name}: TensorRT {trt.__version__} built no engine{log.text()}")
    return Built(
        content=bytes(memoryview(serialized)),
        precision_method="strongly typed" if is_typed else _method(flags),
        warnings=(*unpinned, *log.warnings),
        timing_cache=bytes(memoryview(config.get_timing_cache().serialize())),
    )


def merged_cache(trt: ModuleType, old: bytes, new: bytes) -> bytes:
    """Put the timings of two caches together, of which the old one may be empty.

    Where they do not belong together, the new one is taken alone.
    """
    if not old:
        return new
    log = _fresh_log(trt, "timing cache")
    config = _made(trt.Builder, "a builder", "timing cache", log).create_builder_config()
    whole = config.create_timing_cache(new)
    whole.combine(config.create_timing_cache(old), False)  # False, and nothing changed, where they differ
    return bytes(memoryview(whole.serialize()))


def node_of_layer(name: str, metadata: str | None, nodes: tuple[str, ...]) -> str | None:
    """Find which of some ONNX nodes the parser made a layer of, by the layer's name and metadata.

    The metadata names the node. Without metadata, the layer has the node's name, perhaps with a suffix; such a suffix
    may also be part of another node's name, and then one layer more than needed stays in FP32.
    """
    if match := re.search(r"\[ONNX Layer: ([^\]|]+)", metadata or ""):
        node = match[1].strip()
        return node if node in nodes else None
    if name in nodes:
        return name
    return next((node for node in nodes if re.fullmatch(re.escape(node) + r"(?![0-9A-Za-z]).*", name)), None)


class LoadedPlan:
    """A plan in the GPU's memory with one execution context; :meth:`close` it before what it was bound to is freed.

    Where TensorRT refuses something, an :class:`EngineError` gives its own words.
    """

    def __init__(self, trt: ModuleType, content: bytes, name: str) -> None:
        """Deserialise a plan whose header has been checked (:func:`devit_engines.trt.plan.check_plan`).

        Raises:
            EngineError: TensorRT refuses it, or it has not one input and one output.
        """
        self._trt = trt
        self.name = name
        log = _fresh_log(trt, name)
        self._runtime = _made(trt.Runtime, "a runtime", name, log)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{name}: TensorRT {trt.__version__} refuses the plan{log.text()}: build it again with devit build"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{name}: TensorRT {trt.__version__} makes no execution context{log.text()}: {more_memory()}"
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = [self._engine.get_tensor_mode(each) for each in names]
        if sorted(map(int, modes)) != sorted(map(int, (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT))):
            raise EngineError(f"{name}: expected a plan with one input and one output, found {', '.join(names)}")
        is_input_first = modes[0] == trt.TensorIOMode.INPUT
        self.input_name, self.output_name = names if is_input_first else names[::-1]

    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Type name and shape of the input and of the output, e.g. ``("UINT8", (1, 28, 28, 1))``."""
        engine = self._engine
        return tuple(
            (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)))
            for name in (self.input_name, self.output_name)
        )

    def bind(self, input_shape: tuple[int, ...], input_address: int, output_address: int) -> None:
        """Set shape and addresses, once."""
        log = _fresh_log(self._trt, self.name)
        done = (
            self._context.set_input_shape(self.input_name, input_shape)
            and self._context.set_tensor_address(self.input_name, input_address)
            and self._context.set_tensor_address(self.output_name, output_address)
        )
        if not done:
            raise EngineError(f"{self.name}: TensorRT refuses images of shape {input_shape}{log.text()}")

    def enqueue(self, stream: int) -> None:
        """Queue one run on a stream."""
        if not self._context.execute_async_v3(stream):
            errors = _log_of(self._trt).text()
            raise EngineError(f"{self.name}: TensorRT could not run the engine{errors}: restart the program")

    def information(self) -> str:
        """What TensorRT made of the graph, as its inspector's JSON."""
        text: str = self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)
        return text

    def close(self) -> None:
        """Free context, engine and runtime in this order; another order crashes. Twice is allowed."""
        self._context = None
        self._engine = None
        self._runtime = None


@cache
def _log_of(trt: ModuleType) -> Any:  # noqa: ANN401 - a class that exists only once the library is there
    """One logger per process: TensorRT keeps the first that it is given and warns about every other one."""

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        """TensorRT's messages since :func:`_fresh_log`."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401 - the library's enum
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))
            elif severity == trt.ILogger.Severity.WARNING and re.search(
                "fp16|fp8|half|int8|layernorm|normalization", msg, re.I
            ):
                self.warnings.append(" ".join(msg.split()))

        def text(self) -> str:
            """The last errors in brackets, to end a sentence with; empty where there were none."""
            return f" ({'; '.join(self.errors)})" if self.errors else ""

    return Log()


def _fresh_log(trt: ModuleType, name: str) -> Any:  # noqa: ANN401 - the library's class
    try:
        log = _log_of(trt)
    except AttributeError as err:
        raise EngineError(f"{name}: expected TensorRT's Python module, found {trt.__name__}: {err}") from err
    log.errors.clear()
    log.warnings.clear()
    return log


def _made(make: Callable[[Any], Any], what: str, name: str, log: Any) -> Any:  # noqa: ANN401 - the library's objects
    """A builder or runtime; without a usable GPU their constructors end in a TypeError."""
    try:
        return make(log)
    except TypeError as err:
        raise EngineError(
            f"{name}: TensorRT makes {what} only where CUDA finds a GPU{log.text() or f' ({err})'}: run devit doctor"
        ) from err


def _check_fp8(trt: ModuleType, request: BuildRequest, is_typed: bool) -> None:
    """Refuse FP8 where there is none; where the GPU is not known, TensorRT says so itself.

    TensorRT 8.6 has neither the opset nor the type: it would build the FP32 graph.
    """
    if has_fp8(request.compute_capability) is False:
        wanted, found = "a GPU from SM 8.9 on", request.compute_capability
    elif not is_typed:
        wanted, found = "TensorRT 10 or later", trt.__version__
    else:
        return
    raise CannotCompileError(
        f"{request.name}: expected {wanted} for variant {request.variant}, found {found}, which has no FP8: devices "
        "take the next variant"
    )


def _precision_flags(request: BuildRequest) -> tuple[str, ...]:
    """Name the builder flags that give a variant its precision where types do not."""
    return tuple(flag for flag in ("INT8", "FP16") if flag.lower() in request.variant)


def _method(flags: tuple[str, ...]) -> str:
    names = " and ".join(flag.lower() for flag in flags) or "no"
    return f"{names} flag" if len(flags) == 1 else f"{names} flags"


def _parse(trt: ModuleType, network: Any, request: BuildRequest, graph: GraphFile, log: Any) -> None:  # noqa: ANN401
    parser = trt.OnnxParser(network, log)
    if parser.parse(graph.read()):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    found = "; ".join(f"node {error.node()}: {' '.join(error.desc().split())}" for error in errors) or "no reason given"
    raise CannotCompileError(
        f"{request.name}: TensorRT {trt.__version__} cannot read the graph of variant {request.variant} ({found}): "
        "make the bundle again with devit export"
    )


def _configured(trt: ModuleType, builder: Any, network: Any, request: BuildRequest, workspace_bytes: int) -> Any:  # noqa: ANN401
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for devit engines inspect
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: what stays in FP32 would be rounded to 10 bits
    images = network.get_input(0)
    # A batch that is fixed here spares the engine everything that a free one costs.
    images.shape = (1, *tuple(images.shape)[1:])
    if request.targets:
        config.num_compute_capabilities = len(request.targets)
        for index, target in enumerate(request.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
    return config


def _pin(trt: ModuleType, network: Any, config: Any, request: BuildRequest) -> tuple[str, ...]:  # noqa: ANN401
    """Without strong typing: FP16 wherever TensorRT likes, but the variant's FP32 nodes as they are.

    Returns:
        A warning about nodes without a layer, if there are any.
    """
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    missed = set(request.fp32_nodes) - {""}
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    # Their types are what they are.
    untyped = [getattr(trt.LayerType, name) for name in ("CAST", "CONSTANT", "DEQUANTIZE", "QUANTIZE", "SHAPE")]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        node = node_of_layer(layer.name, layer.metadata, request.fp32_nodes)
        is_norm = layer.type == trt.LayerType.NORMALIZATION
        if node is None and not is_norm:
            continue
        missed -= {node}
        if is_norm:
            # get_layer gives the base class, as for every layer; this is how Python gets at a layer's own settings.
            layer.__class__ = trt.INormalizationLayer
            layer.compute_precision = trt.DataType.FLOAT
        if layer.type not in untyped and layer.get_output(0).dtype in floats:
            layer.precision = trt.DataType.FLOAT
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.DataType.FLOAT)
    if not missed:
        return ()
    return (
        f"{len(missed)} of {len(request.fp32_nodes)} nodes that stay in FP32 have no layer of their name, "
        f"{min(missed)} among them",
    )


def _monitor(trt: ModuleType, watch: Watch) -> Any:  # noqa: ANN401 - the library's class
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        """Called from TensorRT's threads, through which no exception may pass; ``watch`` raises none."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            """A phase's end says nothing that the next one's start does not."""

    return Monitor()
