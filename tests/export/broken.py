"""A graph that is right in FP32 and loses its answer in FP16, without an error: what the range scan is for.

It needs onnx and numpy alone. Tests elsewhere read it by ``runpy.run_path``.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from devit_contract.arrays import UInt8Array

SIDE = 4
WIDTH = 24
DIM = 8
LOUD = 1400.0
"""What one channel of a real ViT's residual stream reaches (ViT-B/16, onnxsim's scripts/nvidia/README.md)."""
IMAGES = 64


def broken_graph() -> tuple[onnx.ModelProto, UInt8Array]:
    """Write a LayerNorm out as the exporters before opset 17 did, over 16 tokens with one loud channel.

    The square of 1,356 is 1.8 million and becomes infinite in FP16; divided by infinity, every token is zero, and every
    image has the same finite features.

    Returns:
        The graph in FP32, ``images`` uint8 ``(batch, 4, 4, 3)`` to ``features`` float32 ``(batch, 8)``, and 64 images.
    """
    rng = np.random.default_rng(1400)
    bias = rng.normal(0.0, 1.0, WIDTH)
    bias[5] = LOUD
    head = rng.normal(0.0, 0.05, (SIDE * SIDE, WIDTH, DIM))
    head[:, 5] = 0.0  # the loud channel says nothing about the image
    weights = {
        "scale": np.array(1.0 / 64.0, np.float32),
        "to_tokens": np.array([0, SIDE * SIDE, 3], np.int64),
        "embedding": rng.normal(0.0, 1.0, (3, WIDTH)).astype(np.float32),
        "embedding_bias": bias.astype(np.float32),
        "two": np.array(2.0, np.float32),
        "epsilon": np.array(1e-6, np.float32),
        # Trained norms lift the quiet channels again.
        "gain": np.full(WIDTH, 100.0, np.float32),
        "flat": np.array([0, SIDE * SIDE * WIDTH], np.int64),
        "head": head.reshape(-1, DIM).astype(np.float32),
    }
    graph = helper.make_graph(
        _nodes(),
        "broken",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)


def _nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["images"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"], name="normalise"),
        helper.make_node("Reshape", ["scaled", "to_tokens"], ["colours"], name="cut"),
        helper.make_node("MatMul", ["colours", "embedding"], ["embedded"], name="embed"),
        helper.make_node("Add", ["embedded", "embedding_bias"], ["stream"], name="shift"),
        helper.make_node("ReduceMean", ["stream"], ["mean"], name="mean", axes=[-1], keepdims=1),
        helper.make_node("Sub", ["stream", "mean"], ["centred"], name="centre"),
        helper.make_node("Pow", ["centred", "two"], ["squares"], name="square"),
        helper.make_node("ReduceMean", ["squares"], ["variance"], name="average", axes=[-1], keepdims=1),
        helper.make_node("Add", ["variance", "epsilon"], ["safe"], name="guard"),
        helper.make_node("Sqrt", ["safe"], ["deviation"], name="root"),
        helper.make_node("Div", ["centred", "deviation"], ["normed"], name="divide"),
        helper.make_node("Mul", ["normed", "gain"], ["lifted"], name="lift"),
        helper.make_node("Reshape", ["lifted", "flat"], ["row"], name="flatten"),
        helper.make_node("MatMul", ["row", "head"], ["features"], name="project"),
    ]
