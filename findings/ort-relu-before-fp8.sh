#!/usr/bin/env bash
# onnxruntime 1.32.0 drops a ReLU before a QuantizeLinear to FP8 (E4M3), so negative numbers come through. The rewrite is
# right where the zero point is the lowest number of the type, as 0 is of uint8; of FP8 it is not, and it has no check.
# Source: microsoft/onnxruntime, onnxruntime/core/optimizer/qdq_transformer/relu_quantizelinear.cc.
# Our answer: export/devit_export/parity.py disables the rewrite for the check of an export.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 'numpy<3' ml_dtypes
found=$("$folder/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

x = np.array([-3, -1, 0, 2], np.float32)
for name, zero in (("int8 from -128", np.int8(-128)), ("FP8", np.zeros((), ml_dtypes.float8_e4m3fn))):
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["active"]),
            helper.make_node("QuantizeLinear", ["active", "scale", "zero"], ["kept"]),
            helper.make_node("DequantizeLinear", ["kept", "scale", "zero"], ["y"]),
        ],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.float32(1), "scale"), numpy_helper.from_array(np.asarray(zero), "zero")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString()
    for words, disabled in (("as it is", []), ("without ReluQuantRewrite", ["ReluQuantRewrite"])):
        session = onnxruntime.InferenceSession(
            content, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        print(f"{name}, {words}: ReLU of {x.astype(int).tolist()} is {session.run(None, {'x': x})[0].astype(int).tolist()}")
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
int8 from -128, as it is: ReLU of [-3, -1, 0, 2] is [0, 0, 0, 2]
int8 from -128, without ReluQuantRewrite: ReLU of [-3, -1, 0, 2] is [0, 0, 0, 2]
FP8, as it is: ReLU of [-3, -1, 0, 2] is [-3, -1, 0, 2]
FP8, without ReluQuantRewrite: ReLU of [-3, -1, 0, 2] is [0, 0, 0, 2]
EXPECTED
