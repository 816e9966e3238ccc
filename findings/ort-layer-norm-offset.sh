#!/usr/bin/env bash
# onnxruntime 1.23.2, the last for Python 3.10: LayerNormalization on the CPU takes the variance as a difference of
# squares in float32, so tokens far off zero lose it. With the mean subtracted first, which changes nothing in the
# operator's definition (https://onnx.ai/onnx/operators/onnx__LayerNormalization.html), it is right.
# Source: microsoft/onnxruntime, onnxruntime/core/providers/cpu/nn/layer_norm_impl.cc, "mean_square".
# Our answer: export/devit_export/centring.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.23.2 onnx==1.19.1 'numpy<3'
found=$("$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

WIDTH = 192
graph = helper.make_graph(
    [helper.make_node("LayerNormalization", ["x", "scale"], ["y"], axis=-1, epsilon=1e-6)],
    "norm",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, WIDTH])],
    [helper.make_tensor("scale", TensorProto.FLOAT, [WIDTH], np.ones(WIDTH, np.float32))],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
noise = np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)
for offset in (0, 100, 1000, 10_000):
    tokens = noise + np.float32(offset)
    exact = tokens.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-6)
    errors = []
    for given in (tokens, tokens - tokens.mean(dtype=np.float64).astype(np.float32)):
        (computed,) = session.run(None, {"x": given})
        error = np.abs(computed - exact).max()
        errors.append("NaN" if np.isnan(error) else "below 1 %" if error < 0.01 else "above 1 %")
    print(f"tokens of deviation 1 around {offset}: error {errors[0]}, with the mean subtracted first {errors[1]}")
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
tokens of deviation 1 around 0: error below 1 %, with the mean subtracted first below 1 %
tokens of deviation 1 around 100: error above 1 %, with the mean subtracted first below 1 %
tokens of deviation 1 around 1000: error above 1 %, with the mean subtracted first below 1 %
tokens of deviation 1 around 10000: error NaN, with the mean subtracted first below 1 %
EXPECTED
