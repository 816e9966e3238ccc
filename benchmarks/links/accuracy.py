"""What coding costs in answers: the shipped cell on the test images of Fashion-MNIST, coded at the 28 pixels they have.

Coding of so few pixels is the worst case: a JPEG's block of eight by eight covers a quarter of the picture's width.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from benchmarks.common.measure import tell
from benchmarks.common.rows import Row

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.preprocess import decode_coded, encode_image
from devit_contract.choices import ImageCoding

TEST_IMAGES = 10_000
WANTED_POINTS = 0.1
_DATA = Path("/usr/share/datasets/fashion-mnist")
_BUNDLE = Path(__file__).parents[2] / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
_BATCH = 250


def accuracy_rows(count: int) -> list[Row]:
    """Classify the first ``count`` test images as they are, and coded; nothing where the data set is missing."""
    if not _DATA.is_dir():
        tell(f"links: no accuracy: {_DATA} is missing, install dataset-fashion-mnist\n")
        return []
    cell, labels = _Cell(), _read("t10k-labels-idx1-ubyte.gz", 8)[:count]
    images = _read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)[:count]
    figure = f"Fashion-MNIST, {len(images):,} test images of 28 px: accuracy"
    raw_logits = cell.logits(images)
    raw = _accuracy(raw_logits, labels)
    rows = [Row(figure=figure, side="raw", unit="%", p50=raw, samples=len(images))]
    codings: tuple[ImageCoding, ...] = ("jpeg", "lossless")
    for coding in codings:
        tell(f"links: accuracy, {coding}")
        logits = cell.logits(cell.coded(images, coding))
        found = _accuracy(logits, labels)
        is_exact = coding == "lossless"
        holds = np.array_equal(logits, raw_logits) if is_exact else abs(found - raw) <= WANTED_POINTS
        wanted = "the same logits" if is_exact else f"within {WANTED_POINTS:g} points"
        rows.append(
            Row(
                figure=figure,
                side=coding,
                unit="%",
                p50=found,
                samples=len(images),
                against="raw",
                wanted=wanted,
                holds=bool(holds),
            )
        )
    tell("links: accuracy: done\n")
    return rows


class _Cell:
    """The shipped bundle's submodels and head, on this machine."""

    def __init__(self) -> None:
        self._bundle = bundle = Bundle(_BUNDLE)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._fusion = Fusion(bundle.fusion_head())
        self._models = [
            onnxruntime.InferenceSession(str(bundle.folder / f"submodel-{device}.fp32.onnx"), options)
            for device in range(len(bundle.manifest.submodels))
        ]

    def coded(self, images: UInt8Array, coding: ImageCoding) -> UInt8Array:
        """Code each image, as a client does, and decode it, as an agent does."""
        spec = self._bundle.manifest.preprocess
        files = (encode_image(image, coding) for image in images)
        return np.stack([decode_coded(file or b"", spec, "test image") for file in files])

    def logits(self, images: UInt8Array) -> Float32Array:
        """Answer images ``(n, 28, 28, 1)`` with all devices, ``(n, K)``."""
        features = [
            np.concatenate(
                [
                    model.run(None, {model.get_inputs()[0].name: images[start : start + _BATCH]})[0]
                    for start in range(0, len(images), _BATCH)
                ]
            )
            for model in self._models
        ]
        joined = np.concatenate(features, axis=1).astype(np.float32)
        return self._fusion.batch_logits(joined, self._fusion.head.all_devices)


def _accuracy(logits: Float32Array, labels: npt.NDArray[np.uint8]) -> float:
    return 100 * float((logits.argmax(axis=1) == labels).mean())


def _read(name: str, offset: int) -> UInt8Array:
    return np.frombuffer(gzip.decompress((_DATA / name).read_bytes()), np.uint8, offset=offset)
