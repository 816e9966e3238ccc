#!/usr/bin/env bash
# TensorRT-RTX 1.7.1 takes a QuantizeLinear without a zero point for one to int8, and says nothing. ONNX (opset 10 to 25)
# and ONNX Runtime make uint8 of it: what was never negative keeps 255 steps there, and 127 here, all above is cut off.
# Source: "ONNX default is UINT8, TRT will default to INT8" in onnx-tensorrt's QuantDequantLinearHelper.
# Our answer: export/devit_export/rules.py wants no uint8 tensor but the input, and zero points of 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps tensorrt-rtx-cu13==1.7.1.116 \
  tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.23.2 onnx==1.19.1 'numpy<3'
found=$(cd "$folder" && "$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

step = numpy_helper.from_array(np.array(1.0, np.float32), "step")
graph = helper.make_graph(
    [
        helper.make_node("QuantizeLinear", ["x", "step"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "step"], ["y"], name="dequantize"),
    ],
    "quantizers",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    [step],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
numbers = np.array([-100, 100, 200, 300], np.float32)
print("ONNX Runtime:", numbers.astype(int).tolist(), "becomes", session.run(None, {"x": numbers})[0].astype(int).tolist())


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.words = []

    def log(self, severity, words):
        if severity in (trt.ILogger.Severity.WARNING, trt.ILogger.Severity.ERROR):
            self.words.append(words)


log = Log()
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
log.words.clear()
print("TensorRT-RTX parses it:", parser.parse(model), "with", len(log.words), "warnings")
layers = [network.get_layer(index) for index in range(network.num_layers)]
(quantizer,) = [layer for layer in layers if layer.type == trt.LayerType.QUANTIZE]
print("its quantized numbers are", quantizer.get_output(0).dtype.name)
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
ONNX Runtime: [-100, 100, 200, 300] becomes [0, 100, 200, 255]
TensorRT-RTX parses it: True with 0 warnings
its quantized numbers are INT8
EXPECTED
