#!/usr/bin/env bash
# onnxruntime 1.32.0 writes the bias of a quantized Gemm or Conv in int32, as steps of the product of both scales. Where
# scales and bias are FP16, which they may be from opset 19 on, it divides in FP16: a bias of more than 65504 steps, 0.125
# here, is infinite there, and the answers are wrong, of int8 as of FP8. With FP32 around, they are right.
# Source: microsoft/onnxruntime, onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc.
# Our answer: export/devit_export/parity.py disables the rewrite for the check of an export; int8-fp16 has FP32 scales.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 'numpy<3' ml_dtypes
found=$("$folder/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

for quantized in (np.dtype(np.int8), np.dtype(ml_dtypes.float8_e4m3fn)):
    for kind in (np.float32, np.float16):
        values = {
            "x": np.zeros((1, 4), kind),
            "scale": np.array(2.0**-10, kind),
            "zero": np.zeros((), quantized),
            "weight": np.ones((2, 4), quantized),
            "scales": np.full(2, 2.0**-9, kind),
            "zeros": np.zeros(2, quantized),
            "bias": np.array([0.1, 0.2], kind),
            "out": np.array(2.0**-8, kind),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_d"]),
            helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w_d"], axis=0),
            helper.make_node("Gemm", ["x_d", "w_d", "bias"], ["sum"], transB=1),
            helper.make_node("QuantizeLinear", ["sum", "out", "zero"], ["y_q"]),
            helper.make_node("DequantizeLinear", ["y_q", "out", "zero"], ["y"]),
        ]
        number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        graph = helper.make_graph(
            nodes,
            "bias",
            [helper.make_tensor_value_info("x", number, [1, 4])],
            [helper.make_tensor_value_info("y", number, [1, 2])],
            [numpy_helper.from_array(value, name) for name, value in values.items() if name != "x"],
        )
        content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString()
        for words, disabled in (("", []), (", without WeightBiasQuantization", ["WeightBiasQuantization"])):
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
            found = session.run(None, {"x": values["x"]})[0].astype(np.float32)
            print(f"{quantized.name} in {np.dtype(kind).name}{words}: 0 + (0.1, 0.2) is ({found[0, 0]:.2f}, {found[0, 1]:.2f})")
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
int8 in float32: 0 + (0.1, 0.2) is (0.10, 0.20)
int8 in float32, without WeightBiasQuantization: 0 + (0.1, 0.2) is (0.10, 0.20)
int8 in float16: 0 + (0.1, 0.2) is (0.10, -0.50)
int8 in float16, without WeightBiasQuantization: 0 + (0.1, 0.2) is (0.10, 0.20)
float8_e4m3fn in float32: 0 + (0.1, 0.2) is (0.10, 0.20)
float8_e4m3fn in float32, without WeightBiasQuantization: 0 + (0.1, 0.2) is (0.10, 0.20)
float8_e4m3fn in float16: 0 + (0.1, 0.2) is (0.10, -1.75)
float8_e4m3fn in float16, without WeightBiasQuantization: 0 + (0.1, 0.2) is (0.10, 0.20)
EXPECTED
