"""An INT8 variant for the tiny bundle, made by ONNX Runtime's own quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.engines.changes import rewrite

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.manifest import Bundle, GraphRecord
from devit_engines.engine import ModelRef, name_of, role_of


class Images:
    """Images for the quantizer, as ``onnxruntime.quantization.CalibrationDataReader`` gives them."""

    def __init__(self, images: UInt8Array) -> None:
        """Take images ``(n, H, W, C)``."""
        self._batches = ({"images": images[place : place + 1]} for place in range(len(images)))

    def get_next(self) -> dict[str, UInt8Array] | None:
        """Give the next one."""
        return next(self._batches, None)


def with_int8(bundle: Bundle, models: Sequence[ModelRef] = (0, 1, "baseline"), *, gain: float = 1.0) -> Bundle:
    """Give models of a bundle a variant ``int8``, calibrated with images ``gain`` times as bright as they should be."""
    seen = np.clip(bundle.golden()["images"] * gain, 0, 255).astype(np.uint8)
    manifest, files = bundle.manifest, list(bundle.manifest.files)
    for model in models:
        role, device = role_of(model)
        name = f"{name_of(model).replace(' ', '-')}.int8.onnx"
        (bundle.folder / name).write_bytes(quantized(bundle.path(role, device=device, variant="fp32"), seen))
        files.append(describe_file(bundle.folder, name, role, device=device, variant="int8"))

    def offering(model: ModelRef, record: GraphRecord) -> GraphRecord:
        variants = ("int8", *record.variants) if model in models else record.variants
        return msgspec.structs.replace(record, variants=variants)

    assert manifest.baseline is not None
    submodels = tuple(offering(device, record) for device, record in enumerate(manifest.submodels))
    return rewrite(bundle, files=tuple(files), submodels=submodels, baseline=offering("baseline", manifest.baseline))


def quantized(path: Path, images: UInt8Array) -> bytes:
    """Quantize the matrix products of a graph by images ``(n, H, W, C)``."""
    pytest.importorskip("onnx", reason="the quantizer needs onnx, which no device has")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "int8.onnx"
        quantize_static(
            path,
            out,
            Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return out.read_bytes()
