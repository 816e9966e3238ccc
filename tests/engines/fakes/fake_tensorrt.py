"""A test double of ``tensorrt``, as strict as the real module of one version.

Which names exist, which properties may be set and what the enums are called comes from ``tests/data/trt_api``, read off
the real wheels. A name that the version lacks is an AttributeError; one that it has and this double does not play is a
NotImplementedError. A plan here holds the ONNX graph; FP32 graphs run on ONNX Runtime, graphs with FP16 on ONNX's
reference in numpy, which overflows as a GPU does.

Precision is refused as the real ones refuse it: flags beside strong typing, a graph that needs a flag without it, INT8
by flag without scales, and quantizers that the parser does not take.

What may go wrong is told by environment variables, so that a build process obeys them too:

``FAKE_TRT_KILL_ABOVE``   the kernel kills builds with a larger workspace, in bytes
``FAKE_TRT_STEPS``        number of steps of a build; each waits for ``FAKE_TRT_STEP_S`` seconds
``FAKE_TRT_FAIL``         a build fails with this text in the log
``FAKE_TRT_REFUSE``       ``fp16``, ``int8`` or ``fp8``: graphs with it in them cannot be built, as on a GPU without it
``FAKE_TRT_NO_METADATA``  layers do not tell which node they are made of
``FAKE_TRT_WARN``         a build warns with this text
"""

from __future__ import annotations

import enum
import json
import os
import re
import signal
import struct
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TABLES = Path(__file__).parents[2] / "data" / "trt_api"
VERSIONS = ("8.6.1", "10.3.0", "10.13.3.9", "11.4.0.106")
HIGHEST_OPSET = {"8": 17, "10": 24, "11": 25}
MEMORY: Callable[[], Any] | None = None
"""Finds the fake CUDA driver whose memory the engines read; set by the test."""
FREED: list[str] = []
"""Kinds of objects in the order in which they were freed."""

KINDS = {
    "Cast": "CAST",
    "DequantizeLinear": "DEQUANTIZE",
    "Gemm": "MATRIX_MULTIPLY",
    "LayerNormalization": "NORMALIZATION",
    "MatMul": "MATRIX_MULTIPLY",
    "QuantizeLinear": "QUANTIZE",
    "Shape": "SHAPE",
    "Softmax": "SOFTMAX",
}
"""Layers of the nodes that matter here; all others are shuffles."""
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
PRECISIONS = ("FP16", "INT8", "BF16", "FP8", "INT4", "FP4")
"""Builder flags that say what types say in a strongly typed network."""
_HEADER = struct.Struct("<4sI16s4B")  # magic, serialisation version, unknown, TensorRT's version at byte 24


def make_module(version: str) -> types.ModuleType:
    """Build the module ``tensorrt`` of a version that has a table."""
    text = (TABLES / f"trt_api_{version}.txt").read_text()
    module = types.ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    enums, classes = _enums(text), _classes(text)
    for name, members in enums.items():
        if "." not in name:
            setattr(module, name, enum.IntEnum(name, members))
    names = {name: members for name, members in classes.items() if name in PLAYED}
    for name, (members, settable) in names.items():
        setattr(module, name, _class(module, name, members, settable))
    severity = enum.IntEnum("Severity", enums["ILogger.Severity"])
    module.ILogger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})  # type: ignore[attr-defined]
    return module


def _enums(text: str) -> dict[str, dict[str, int]]:
    found = {}
    for line in text.partition("## Classes of interest")[0].splitlines():
        if match := re.fullmatch(r"([\w.]+): (\w+=-?\d+(?:, \w+=-?\d+)*)", line):
            found[match[1]] = {name: int(number) for name, number in (each.split("=") for each in match[2].split(", "))}
    return found


def _classes(text: str) -> dict[str, tuple[set[str], set[str]]]:
    """Names of each class, and those of its properties that may be set."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    members: set[str] = set()
    settable: set[str] = set()
    for line in text.partition("## Classes of interest")[2].splitlines():
        if line.startswith("### "):
            members, settable = set(), set()
            if "ABSENT" not in line:
                found[line[4:].partition(":")[0]] = (members, settable)
        elif match := re.match(r"  @ (\w+)( \(read-only\))?$", line):
            members.add(match[1])
            if match[2] is None:
                settable.add(match[1])
        elif match := re.match(r"  (\w+)", line):
            members.add(match[1])
    return found


def _class(module: types.ModuleType, name: str, members: set[str], settable: set[str]) -> type:
    played = PLAYED[name]
    content: dict[str, Any] = {key: value for key, value in vars(played).items() if key.startswith("__")}
    content |= {key: value for key, value in vars(played).items() if key.startswith("_") or key in members}
    for missing in members - content.keys():
        if not missing.startswith("__"):
            content[missing] = property(_not_played(name, missing))

    def set_attribute(self: Any, key: str, value: Any) -> None:
        if not key.startswith("_") and key not in settable:
            kind = "read-only" if key in members else "unknown"
            raise AttributeError(f"{name}.{key} is {kind} in TensorRT {module.__version__}")
        object.__setattr__(self, key, value)

    content["__setattr__"] = set_attribute
    content["_trt"] = module
    return type(name, (), content)


def _not_played(name: str, member: str) -> Callable[[Any], Any]:
    def refuse(self: Any) -> Any:
        raise NotImplementedError(f"the double does not play {name}.{member}")

    return refuse


class _Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        network = self._trt.INetworkDefinition()
        network._flags = flags
        return network

    def create_builder_config(self) -> Any:
        config = self._trt.IBuilderConfig()
        return config

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt, log = self._trt, self._logger
        workspace = config._limits[trt.MemoryPoolType.WORKSPACE]
        if workspace > int(os.environ.get("FAKE_TRT_KILL_ABOVE", 1 << 62)):
            os.kill(os.getpid(), signal.SIGKILL)
        if words := os.environ.get("FAKE_TRT_WARN"):
            log.log(trt.ILogger.Severity.WARNING, words)
        holds, words = REFUSALS.get(os.environ.get("FAKE_TRT_REFUSE", ""), (None, ""))
        if holds is not None and holds(network._model):
            log.log(trt.ILogger.Severity.ERROR, words)
            return None
        if words := _flag_objection(trt, network, config) or os.environ.get("FAKE_TRT_FAIL", ""):
            log.log(trt.ILogger.Severity.ERROR, words)
            return None
        if not _steps(config):
            log.log(trt.ILogger.Severity.ERROR, "the build was cancelled")
            return None
        if config._cache is not None:
            config._cache._entries.append(len(network._model))
        pinned = [layer._node for layer in network._layers if layer._precision == trt.DataType.FLOAT]
        flags = _flag_names(config)
        payload = {
            "fp16_flag": "FP16" in flags,
            "int8_flag": "INT8" in flags,
            "pinned": pinned,
            "tf32": "TF32" in flags,
            "batch": network._inputs[0].shape[0],
            "verbosity": int(config.profiling_verbosity),
        }
        head = json.dumps(payload).encode()
        parts = [int(part) for part in trt.__version__.split(".")] + [0]
        header = _HEADER.pack(b"ftrt", 0, b"", *parts[:4])
        return _HostMemory(header + struct.pack("<I", len(head)) + head + network._model)


def _flag_names(config: Any) -> set[str]:
    return {flag.name for flag in config._flags}


def _flag_objection(trt: Any, network: Any, config: Any) -> str:
    """Why a build refuses its precision flags; empty where it does not.

    The words are those in NVIDIA/TensorRT issues 4253 (10.6) and 2865 (8.x), and in NVIDIA/TensorRT-LLM issue 1201.
    """
    flags = _flag_names(config)
    if network._has("STRONGLY_TYPED"):
        wrong = [flag for flag in PRECISIONS if flag in flags]
        return f"Parameter check failed, condition: !config.getFlag(BuilderFlag::k{wrong[0]})." if wrong else ""
    for name, is_held in (("Int8", _holds_quantizers(network._model)), ("Fp16", _holds_fp16(network._model))):
        if is_held and name.upper() not in flags:
            return (
                f"{name} precision has been set for a layer or layer output, but {name.lower()} is not configured in "
                "the builder"
            )
    if "INT8" in flags and not _holds_quantizers(network._model):  # and no calibrator, which the double does not play
        return "Calibration failure occurred with no scaling factors detected."
    return ""


def _steps(config: Any) -> bool:
    monitor = config._monitor
    count = int(os.environ.get("FAKE_TRT_STEPS", "3"))
    pause_s = float(os.environ.get("FAKE_TRT_STEP_S", "0"))
    going_on = []

    def build() -> None:  # TensorRT calls from threads of its own
        if monitor is not None:
            monitor.phase_start("Tactic Selection", None, count)
        for step in range(count):
            time.sleep(pause_s)
            if monitor is not None and not monitor.step_complete("Tactic Selection", step):
                return
        if monitor is not None:
            monitor.phase_finish("Tactic Selection")
        going_on.append(True)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    return bool(going_on)


class _HostMemory(bytearray):
    @property
    def nbytes(self) -> int:
        return len(self)


class _Config:
    def __init__(self) -> None:
        self._limits: dict[int, int] = {}
        self._flags: set[int] = {self._trt.BuilderFlag.TF32}
        self._cache: Any = None
        self._monitor: Any = None
        self._verbosity = 0

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[self._trt.MemoryPoolType(pool)] = pool_size

    def set_flag(self, flag: Any) -> None:
        self._flags.add(self._trt.BuilderFlag(flag))

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(self._trt.BuilderFlag(flag))

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        cache = self._trt.ITimingCache()
        content = bytes(serialized_timing_cache)
        if content:
            try:
                stored = json.loads(content)
            except ValueError:
                stored = {"version": "damaged", "entries": []}
            cache._version, cache._entries = stored["version"], stored["entries"]
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and cache._version != self._trt.__version__:
            return False  # and no cache is set
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    progress_monitor = property(lambda self: self._monitor, lambda self, value: setattr(self, "_monitor", value))
    profiling_verbosity = property(
        lambda self: self._verbosity,
        lambda self, value: setattr(self, "_verbosity", self._trt.ProfilingVerbosity(value)),
    )


class _Cache:
    def __init__(self) -> None:
        self._version = self._trt.__version__
        self._entries: list[int] = []

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        if self._version != input_cache._version and not ignore_mismatch:
            return False
        self._entries = [*self._entries, *input_cache._entries]
        return True

    def serialize(self) -> Any:
        return _HostMemory(json.dumps({"version": self._version, "entries": self._entries}).encode())


class _Network:
    def __init__(self) -> None:
        self._flags = 0
        self._model = b""
        self._layers: list[Any] = []
        self._inputs: list[Any] = []

    def _has(self, flag: str) -> bool:
        members = self._trt.NetworkDefinitionCreationFlag.__members__
        return flag in members and bool(self._flags >> int(members[flag]) & 1)

    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))

    def get_layer(self, index: int) -> Any:
        return self._layers[index]

    def get_input(self, index: int) -> Any:
        return self._inputs[index]


class _Tensor:
    def __init__(self) -> None:
        self._name, self._shape, self._dtype = "", (), None

    name = property(lambda self: self._name)
    dtype = property(lambda self: self._dtype)
    shape = property(lambda self: self._shape, lambda self, value: setattr(self, "_shape", tuple(value)))


class _Layer:
    def __init__(self) -> None:
        self._name, self._type, self._outputs, self._precision = "", None, [], None
        self._node = ""

    name = property(lambda self: self._name)
    type = property(lambda self: self._type)
    metadata = property(lambda self: f"[ONNX Layer: {self._node}]" if self._node and self._tells else "")
    num_outputs = property(lambda self: len(self._outputs))
    precision = property(lambda self: self._precision, lambda self, value: self._pin(value))
    compute_precision = property(lambda self: self._computes, lambda self, value: setattr(self, "_computes", value))

    def _pin(self, value: Any) -> None:
        assert self._type.name not in ("CAST", "CONSTANT", "SHAPE"), (
            f"a layer of type {self._type.name} has a precision"
        )
        self._precision = value

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    def set_output_type(self, index: int, dtype: Any) -> None:
        self._outputs[index]._dtype = dtype


class _Parser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[Any] = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse(self, model: Any, path: str | None = None) -> bool:
        import onnx

        trt, network = self._trt, self._network
        is_old = trt.__version__.startswith("8.")
        if is_old and not network._has("EXPLICIT_BATCH"):
            return self._refuse(0, "the network must have an explicit batch dimension")
        try:
            graph = onnx.load_from_string(bytes(model))
            onnx.checker.check_model(graph)
        except Exception as err:
            return self._refuse(0, f"failed to parse ONNX model: {str(err).splitlines()[0]}")
        opset = graph.opset_import[0].version
        if opset > HIGHEST_OPSET[trt.__version__.partition(".")[0]]:
            return self._refuse(0, f"opset {opset} is not supported")
        for index, node in enumerate(graph.graph.node):
            if node.op_type in QUANTIZERS and (words := _quantizer_objection(graph.graph, node, is_old)):
                return self._refuse(index, words)
        network._model = bytes(model)
        images = trt.ITensor()
        images._name = graph.graph.input[0].name
        images._dtype = trt.DataType.UINT8
        shape = graph.graph.input[0].type.tensor_type.shape
        images._shape = tuple(side.dim_value if not side.dim_param else -1 for side in shape.dim)
        network._inputs.append(images)
        for node in graph.graph.node:
            network._layers += self._layers(node, len(network._layers))
        return True

    def _layers(self, node: Any, count: int) -> list[Any]:
        """Layers of a node, named as TensorRT-RTX 1.7.1 names them: helpers before it, a part behind it."""
        helpers = [("CONSTANT", f"{node.name}.weight"), ("SHUFFLE", f"ONNXTRT_Broadcast_{count}")]
        made = [self._layer(kind, name, "") for kind, name in helpers if node.op_type in ("LayerNormalization", "Gemm")]
        made.append(self._layer(KINDS.get(node.op_type, "SHUFFLE"), node.name, node.name))
        if node.op_type == "Gemm":
            made.append(self._layer("ELEMENTWISE", f"{node.name}_{count}", node.name))
        kinds = {"Shape": "INT32", "QuantizeLinear": "INT8"}
        if node.op_type in kinds:
            made[0]._outputs[0]._dtype = self._trt.DataType[kinds[node.op_type]]
        return made

    def _layer(self, kind: str, name: str, node: str) -> Any:
        layer, output = self._trt.ILayer(), self._trt.ITensor()  # the base class, as the real bindings hand it out
        layer._name, layer._node, layer._type = name, node, self._trt.LayerType[kind]
        layer._tells = not os.environ.get("FAKE_TRT_NO_METADATA")
        output._dtype = self._trt.DataType.FLOAT
        layer._outputs = [output]
        return layer

    def _refuse(self, node: int, words: str) -> bool:
        error = self._trt.ParserError()
        error._node, error._desc = node, words
        self._errors.append(error)
        self._logger.log(self._trt.ILogger.Severity.ERROR, words)
        return False


def _quantizer_objection(graph: Any, node: Any, is_old: bool) -> str:
    """Why the parser refuses a quantizer; empty where it does not.

    From QuantDequantLinearHelper in onnx-tensorrt 8.6-GA and 10.1-GA, and what TensorRT-RTX 1.7.1 says.
    """
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scale, zero = constants[node.input[1]], constants[node.input[2]] if len(node.input) > 2 else None
    if zero is None and is_old:
        return "This version of TensorRT requires 3 inputs for the INT8 QuantizeLinear/DequantizeLinear operator."
    if zero is None or zero.dtype == np.uint8:
        # Newer ones warn and make INT8 of it, whose numbers are others: nothing of ours may come to that.
        return "Found invalid input type of UINT8"
    if zero.dtype.name == "float8_e4m3fn" and is_old:
        return "FP8 is unknown to this parser"
    if zero.dtype != np.int8 and zero.dtype.name != "float8_e4m3fn":
        return f"{node.name}: input has type {zero.dtype.name.capitalize()} but must have type FP8, FP4, Int4, or Int8"
    if zero.astype(np.float32).any():
        return (
            "Non-zero zero point is not supported." if not is_old else "TensorRT only supports symmetric quantization."
        )
    if not (scale > 0).all():
        return "Scale coefficients must all be positive"
    # An axis left out is 1 for ONNX, and 0 for 8.6.
    axis = next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 0 if is_old else 1)
    channels = constants[node.input[0]].shape[axis] if node.input[0] in constants else 1
    if scale.size not in (1, channels):
        return "The number of scales is not equal to the number of output channels."
    return ""


def _holds_quantizers(model: bytes) -> bool:
    import onnx

    return any(node.op_type in QUANTIZERS for node in onnx.load_from_string(model).graph.node)


def _holds_fp16(model: bytes) -> bool:
    import onnx

    weights = onnx.load_from_string(model).graph.initializer
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights)


def _holds_fp8(model: bytes) -> bool:
    import onnx

    weights = onnx.load_from_string(model).graph.initializer
    return any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in weights)


REFUSALS: dict[str, tuple[Callable[[bytes], bool], str]] = {
    "fp16": (_holds_fp16, "could not find any implementation"),
    "int8": (_holds_quantizers, "could not find any implementation"),
    # TensorRT-RTX 1.7.1 for SM 8.6.
    "fp8": (
        _holds_fp8,
        "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: fp8_e4m3",
    ),
}


class _ParserError:
    def __init__(self) -> None:
        self._node, self._desc = 0, ""

    def node(self) -> int:
        return self._node

    def desc(self) -> str:
        return self._desc


class _Freed:
    """Says when it is freed; CPython does so when the last reference is gone."""

    def __del__(self) -> None:
        FREED.append(type(self).__name__)


class _Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    __del__ = _Freed.__del__

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        trt, content = self._trt, bytes(serialized_engine)
        parts = [int(part) for part in trt.__version__.split(".")] + [0]
        if len(content) < _HEADER.size or content[:4] != b"ftrt" or list(content[24:28]) != parts[:4]:
            self._logger.log(trt.ILogger.Severity.ERROR, "Version tag does not match")
            return None
        (length,) = struct.unpack_from("<I", content, _HEADER.size)
        start = _HEADER.size + 4
        engine = trt.ICudaEngine()
        engine._settings = json.loads(content[start : start + length])
        engine._model = content[start + length :]
        engine._open()
        return engine


class _Engine:
    def __init__(self) -> None:
        self._settings, self._model, self._run = {}, b"", None

    __del__ = _Freed.__del__

    def _open(self) -> None:
        import onnx

        graph = onnx.load_from_string(self._model)
        self._graph = graph
        batch = self._settings["batch"]
        trt = self._trt
        self._ends = []
        for end, mode in ((graph.graph.input[0], "INPUT"), (graph.graph.output[0], "OUTPUT")):
            kind = end.type.tensor_type
            dtype = trt.DataType.UINT8 if kind.elem_type == onnx.TensorProto.UINT8 else trt.DataType.FLOAT
            sides = [side.dim_value for side in kind.shape.dim]
            self._ends.append((end.name, trt.TensorIOMode[mode], (batch, *sides[1:]), dtype))
        self._run = _runner(graph, self._settings)

    num_io_tensors = property(lambda self: len(self._ends))

    def get_tensor_name(self, index: int) -> str:
        return self._ends[index][0]

    def _end(self, name: str) -> Any:
        return next(end for end in self._ends if end[0] == name)

    def get_tensor_mode(self, name: str) -> Any:
        return self._end(name)[1]

    def get_tensor_shape(self, name: str) -> Any:
        return self._end(name)[2]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._end(name)[3]

    def create_execution_context(self) -> Any:
        context = self._trt.IExecutionContext()
        context._engine = self
        return context

    def create_engine_inspector(self) -> Any:
        inspector = self._trt.EngineInspector()
        inspector._engine = self
        return inspector


class _Context:
    def __init__(self) -> None:
        self._engine: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    __del__ = _Freed.__del__

    def set_input_shape(self, name: str, shape: Any) -> bool:
        if tuple(shape) != self._engine.get_tensor_shape(name):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert MEMORY is not None, "set fake_tensorrt.MEMORY first"
        (source, _, shape, _), (target, _, out_shape, _) = self._engine._ends
        if source not in self._shapes or {source, target} != self._addresses.keys():
            return False
        driver, run, addresses = MEMORY(), self._engine._run, dict(self._addresses)

        def work() -> None:
            images = np.frombuffer(driver.view(addresses[source], int(np.prod(shape))), np.uint8).reshape(shape)
            outputs = run(images.copy()).astype(np.float32).reshape(out_shape)
            driver.view(addresses[target], outputs.nbytes)[:] = outputs.tobytes()

        driver.enqueue(stream_handle, work)
        return True


class _Inspector:
    def __init__(self) -> None:
        self._engine: Any = None

    def get_engine_information(self, format: Any) -> str:
        assert format == self._trt.LayerInformationFormat.JSON
        is_new = hasattr(self._trt.IBuilderConfig, "build_route")  # the schema changed with 11
        layers = []
        for node in self._engine._graph.graph.node:
            kind = (
                {"Format": "Row major linear", "Datatype": "Float"}
                if is_new
                else {"Format/Datatype": "Row major linear FP32"}
            )
            layers.append({"Name": node.name, "LayerType": node.op_type, "Outputs": [{"Name": node.output[0], **kind}]})
        return json.dumps({"Layers": layers, "I/O Tensors" if is_new else "Bindings": []})


def _runner(graph: Any, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """FP32 graphs on ONNX Runtime, FP16 ones on the reference in numpy."""
    import onnx

    is_half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.graph.initializer)
    if settings["fp16_flag"] and not is_half:
        from devit_export.precision import lower_precision

        graph, is_half = lower_precision(graph, settings["pinned"], "plan"), True
    if is_half:
        from onnx.reference import ReferenceEvaluator

        graph.opset_import[0].version = 19  # the reference has no older quantizers; our other operators stayed the same
        evaluator, name = ReferenceEvaluator(graph), graph.graph.input[0].name

        def reference(images: Any) -> Any:
            with np.errstate(all="ignore"):
                return evaluator.run(None, {name: images})[0]

        return reference
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


class _ProgressMonitor:
    def __init__(self) -> None:
        pass


PLAYED: dict[str, type] = {
    "Builder": _Builder,
    "IBuilderConfig": _Config,
    "INetworkDefinition": _Network,
    "ILayer": _Layer,
    "INormalizationLayer": _Layer,
    "ITensor": _Tensor,
    "ITimingCache": _Cache,
    "OnnxParser": _Parser,
    "ParserError": _ParserError,
    "Runtime": _Runtime,
    "ICudaEngine": _Engine,
    "IExecutionContext": _Context,
    "EngineInspector": _Inspector,
    "IProgressMonitor": _ProgressMonitor,
}
