#!/usr/bin/env bash
# onnxruntime 1.23.2 makes one operator of GELU as (0.5 x) (1 + erf), and of x (1 + erf) 0.5, but none of
# x (0.5 (1 + erf)), the same product, which torch's exporter (2.13, torch.export) writes. The graph is right, and slower.
# Source: onnxruntime/core/optimizer/gelu_fusion.cc lists the patterns that it knows.
# Our answer: export/devit_export/graph.py writes the first form.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.23.2 onnx==1.19.1 'numpy<3'
found=$(cd "$folder" && "$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

FORMS = {
    "(0.5 x) (1 + erf)": [("x", "half", "a"), ("a", "sum", "y")],
    "(x (1 + erf)) 0.5": [("x", "sum", "a"), ("a", "half", "y")],
    "x (0.5 (1 + erf))": [("half", "sum", "a"), ("x", "a", "y")],
}
values = {"root": 2**0.5, "one": 1.0, "half": 0.5}
constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()]
for form, products in FORMS.items():
    nodes = [
        helper.make_node("Div", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["sum"]),
        *(helper.make_node("Mul", [left, right], [product]) for left, right, product in products),
    ]
    shape = [1, 8]
    graph = helper.make_graph(
        nodes,
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = "optimized.onnx"
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    print(f"{form}: {', '.join(sorted(node.op_type for node in onnx.load('optimized.onnx').graph.node))}")
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
(0.5 x) (1 + erf): Gelu
(x (1 + erf)) 0.5: Gelu
x (0.5 (1 + erf)): Add, Div, Erf, Mul, Mul
EXPECTED
