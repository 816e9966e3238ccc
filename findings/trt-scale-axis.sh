#!/usr/bin/env bash
# TensorRT-RTX 1.7.1 builds a MatMul of INT8 numbers whose weight has its scales along the summed axis without a word, and
# computes it in floating point: such scales cannot be taken out of the sum. With the axis right, the product is in INT8.
# Neither the parser nor the builder warns; only the kernels in the plan tell (Fc: a product of floats, and a Cast of the
# weight before it).
# Our answer: export/devit_export/rules.py refuses such a graph.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps tensorrt-rtx-cu13==1.7.1.116 \
  tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.19.1 'numpy<3'
found=$(cd "$folder" && "$folder/venv/bin/python" - <<'PY'
import re

import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

SIDE = 256


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.words = []

    def log(self, severity, words):
        if severity in (trt.ILogger.Severity.WARNING, trt.ILogger.Severity.ERROR):
            self.words.append(words)


def graph(axis):
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.integers(-127, 128, (SIDE, SIDE), np.int8),
        "scales": rng.uniform(0.01, 0.02, SIDE).astype(np.float32),
        "zeros": np.zeros(SIDE, np.int8),
        "scale": np.array(0.05, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["input"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["real"], name="scaling", axis=axis),
        helper.make_node("MatMul", ["input", "real"], ["y"], name="product"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, SIDE]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    whole = helper.make_graph(nodes, "product", ends[:1], ends[1:], tensors)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


log = Log()
builder = trt.Builder(log)
for axis in (1, 0):
    network = builder.create_network(0)
    log.words.clear()
    assert trt.OnnxParser(network, log).parse(graph(axis))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    plan = bytes(memoryview(builder.build_serialized_network(network, config)))
    kernels = {name.decode() for name in re.findall(rb"__myl_([A-Za-z]+)(?=_0x|[^A-Za-z0-9_])", plan)}
    print(f"axis {axis}: {len(log.words)} warnings, kernels {', '.join(sorted(kernels))}")
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
axis 1: 0 warnings, kernels Mul, MulMinMaxRounCast
axis 0: 0 warnings, kernels CastMulCastCastMulFc, MulMinMaxRounCast
EXPECTED
