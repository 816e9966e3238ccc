"""Collects what a graph's products take in over calibration images: the range of each channel, and some of the rows.

ONNX Runtime's calibrators do not serve here: they pass over a NaN, hold every tensor of every image in memory at once
to make a histogram, and know no ranges of channels, without which nothing can be smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.errors import ExportError
from devit_export.parity import run_batches

_ROWS = 512
"""Kept of each tensor, evenly from all images."""
_BATCH = 8
_GOLDEN = 0.6180339887
"""Steps of this fraction run through tokens and images evenly and without a pattern."""
_HINT = "look for such numbers in the model's weights, and train it again"


@dataclass(frozen=True)
class Activation:
    """One tensor over all images."""

    lowest: Float32Array
    """Of each channel, ``(channels,)``."""
    highest: Float32Array
    rows: Float32Array
    """Some of its numbers, ``(rows, channels)``."""

    def over(self, factors: Float32Array) -> Activation:
        """Divide each channel by a positive factor."""
        return Activation(self.lowest / factors, self.highest / factors, self.rows / factors)


def collect(model: onnx.ModelProto, images: UInt8Array, axes: Mapping[str, int], name: str) -> dict[str, Activation]:
    """Run an FP32 graph over images ``(n, H, W, C)`` and keep what each of some tensors holds.

    Args:
        model: In FP32.
        images: Some of those that the model will see.
        axes: Each wanted tensor, and which of its axes has the channels.
        name: The graph's file name, for the message.

    Raises:
        ExportError: There are no images, the graph cannot be run, or a tensor holds numbers that are not finite.
    """
    if not len(images):
        raise ExportError(f"{name}: expected images to find the ranges of INT8 with, found none")
    seen: dict[str, list[Activation]] = {tensor: [] for tensor in axes}
    quota = -(-_ROWS * _BATCH // len(images))
    for outputs in run_batches(name, _with_outputs(model, axes), images, _BATCH):
        for (tensor, axis), found in zip(axes.items(), outputs, strict=True):
            if not np.isfinite(found).all():
                worst = found[~np.isfinite(found)][0]
                raise ExportError(f"{name}: expected finite numbers in tensor {tensor}, found {worst}: {_HINT}")
            rows = np.moveaxis(found, axis, -1).reshape(-1, found.shape[axis])
            places = (np.arange(min(quota, len(rows))) * _GOLDEN % 1.0 * len(rows)).astype(np.int64)
            seen[tensor].append(Activation(rows.min(axis=0), rows.max(axis=0), rows[places]))
    return {tensor: _joined(parts) for tensor, parts in seen.items()}


def _joined(parts: list[Activation]) -> Activation:
    return Activation(
        np.min([part.lowest for part in parts], axis=0),
        np.max([part.highest for part in parts], axis=0),
        np.concatenate([part.rows for part in parts]),
    )


def _with_outputs(model: onnx.ModelProto, tensors: Mapping[str, int]) -> bytes:
    """Give a graph some of its tensors as its only outputs."""
    scan = onnx.ModelProto()
    scan.CopyFrom(model)
    del scan.graph.output[:]
    for tensor in tensors:
        scan.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    content: bytes = scan.SerializeToString()
    return content
