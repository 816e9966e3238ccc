"""What can be wrong with a graph in INT8."""

from __future__ import annotations

import onnx
from onnx import numpy_helper


def swap_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the tensor of the largest scale that of the smallest, and the other way round."""
    swapped = onnx.ModelProto()
    swapped.CopyFrom(model)
    names = {node.input[1] for node in swapped.graph.node if node.op_type == "QuantizeLinear"}
    scales = [tensor for tensor in swapped.graph.initializer if tensor.name in names]
    scales.sort(key=lambda tensor: float(numpy_helper.to_array(tensor)))
    least, most = scales[0], scales[-1]
    assert float(numpy_helper.to_array(most)) > 2.0 * float(numpy_helper.to_array(least))
    least.raw_data, most.raw_data = most.raw_data, least.raw_data
    return swapped
