#!/usr/bin/env bash
# onnxruntime 1.23.2 and 1.32.0 in Python: a session made of a model's bytes holds them until it ends, beside the weights
# that it has read from them; one made of a path does not. A device that checks a file's digest in memory and then loads
# it pays for the file twice: 22 MB of 106 for a DeiT-Ti.
# Our answer: engines/devit_engines/ort.py takes them from the session.
# Source: "This is bad as we're holding the memory indefinitely" in onnxruntime_inference_collection.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.23.2 onnx==1.19.1 'numpy<3'
cat >"$folder/hold.py" <<'PY'
import ctypes
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

path, how = sys.argv[1:]
if how == "write":
    weight = numpy_helper.from_array(np.ones((4096, 4096), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4096]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Gather", ["w", "i"], ["y"])], "g", [], ends[1:], [weight])
    graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [1]))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    sys.exit()
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
model = Path(path).read_bytes() if how == "bytes" else path
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
del model
ctypes.CDLL(None).malloc_trim(0)
session.run(None, {"i": np.zeros(1, np.int64)})
(kib,) = [int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line]
print(kib // 1024)
PY
python=$folder/venv/bin/python
"$python" "$folder/hold.py" "$folder/model.onnx" write
by_bytes=$("$python" "$folder/hold.py" "$folder/model.onnx" bytes)
by_path=$("$python" "$folder/hold.py" "$folder/model.onnx" path)
found="a session of a model of 64 MiB, made of its bytes, holds $(((by_bytes - by_path + 8) / 16 * 16)) MiB more than one made of its path"
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
a session of a model of 64 MiB, made of its bytes, holds 64 MiB more than one made of its path
EXPECTED
