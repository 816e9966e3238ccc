#!/usr/bin/env bash
# ONNX Runtime 1.23.2 and 1.32.0 make uint8 of int8 inputs on x86, and where the CPU has no VNNI, they add two products
# with weights of 8 bits in 16 bits: 64 products of 1 and 1 are 32. So int8 by int8 in the QDQ format, the default of
# quantize_static, is wrong there without a word, though it is uint8 by int8 that has the name for it. This shows it on any
# x86, as qemu-user has a CPU without VNNI. Weights of 7 bits are right everywhere, as is a session option.
# Source: QDQS8ToU8Transformer and kOrtSessionOptionsAvx2PrecisionMode in onnxruntime's core/optimizer.
# Our answer: export/devit_export/int8/scales.py gives the weights for ONNX Runtime 7 bits; it costs no speed with VNNI.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.23.2 onnx==1.19.1 'numpy<3'
cat >"$folder/products.py" <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def ones(largest):
    """Multiply rows of 64 ones by columns of 64 ones, stored as this many steps."""
    stored = {
        "scale": np.float32(1 / 255),
        "zero": np.int8(-128),
        "steps": np.full((64, 8), largest, np.int8),
        "scales": np.full(8, 1 / largest, np.float32),
        "zeros": np.zeros(8, np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["near"]),
            helper.make_node("DequantizeLinear", ["steps", "scales", "zeros"], ["weight"], axis=1),
            helper.make_node("MatMul", ["near", "weight"], ["y"]),
        ],
        "ones",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


for largest, precise in ((127, "0"), (127, "1"), (64, "0")):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.add_session_config_entry("session.x64quantprecision", precise)
    session = onnxruntime.InferenceSession(ones(largest), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.ones((1, 64), np.float32)})
    print(f"weights up to {largest}, session.x64quantprecision={precise}: 64 ones give {found[0, 0]:.1f}")
PY
found=$(qemu-x86_64-static -cpu Haswell "$(readlink -f "$folder/venv/bin/python")" -c "
import runpy, sys
sys.path.insert(0, next(iter(__import__('glob').glob('$folder/venv/lib/python3*/site-packages'))))
runpy.run_path('$folder/products.py')" 2>/dev/null)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
weights up to 127, session.x64quantprecision=0: 64 ones give 32.4
weights up to 127, session.x64quantprecision=1: 64 ones give 64.0
weights up to 64, session.x64quantprecision=0: 64 ones give 64.0
EXPECTED
