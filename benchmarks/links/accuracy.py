"""What coding costs in answers: the shipped cell on the test images of Fashion-MNIST, coded at 224 pixels and at 28.

The cell takes 28 pixels: larger images are fitted to them after decoding, as agents do. Coded at 28 pixels a JPEG costs
most, as its block of eight by eight covers a quarter of the picture's width: the reason why small images are sent raw.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from benchmarks.common.measure import tell
from benchmarks.common.rows import Row
from PIL import Image

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Bundle, Preprocess
from devit_contract.artefacts.preprocess import decode_coded, encode_image, fit_image
from devit_contract.choices import ImageCoding

TEST_IMAGES = 10_000
LARGE, SMALL = 224, 28
CODINGS: tuple[ImageCoding, ...] = ("raw", "jpeg", "lossless")
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
    rows: list[Row] = []
    for side in (LARGE, SMALL):
        figure = f"Fashion-MNIST, {len(images):,} test images of {side} px: accuracy"
        found = {
            coding: cell.logits(np.stack([cell.carried(image, side, coding) for image in images])) for coding in CODINGS
        }
        rows += [_row(figure, coding, found, labels, is_judged=side == LARGE) for coding in CODINGS]
    tell("links: accuracy: done\n")
    return rows


def _row(
    figure: str,
    coding: ImageCoding,
    found: Mapping[ImageCoding, Float32Array],
    labels: npt.NDArray[np.uint8],
    *,
    is_judged: bool,
) -> Row:
    accuracy, raw = _accuracy(found[coding], labels), _accuracy(found["raw"], labels)
    wanted, holds = "", None
    if coding == "lossless":
        wanted, holds = "the same logits", np.array_equal(found[coding], found["raw"])
    elif coding == "jpeg" and is_judged:
        wanted, holds = f"within {WANTED_POINTS:g} points", abs(accuracy - raw) <= WANTED_POINTS + 1e-9
    against = "" if coding == "raw" else "raw"
    return Row(
        figure=figure,
        side=coding,
        unit="%",
        p50=round(accuracy, 2),
        samples=len(labels),
        against=against,
        wanted=wanted,
        holds=holds,
    )


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

    def carried(self, image: UInt8Array, side: int, coding: ImageCoding) -> UInt8Array:
        """Scale an image to ``side`` pixels, code and decode it, and fit it to the cell's ``(28, 28, 1)``."""
        spec = self._bundle.manifest.preprocess
        if side == SMALL:
            return image if coding == "raw" else decode_coded(encode_image(image, coding) or b"", spec, "test image")
        scaled = Image.fromarray(image[..., 0]).resize(
            (side, side), Image.Resampling.BICUBIC
        )  # (28, 28, 1) -> (28, 28)
        large = np.asarray(scaled.convert("RGB"))
        if coding != "raw":
            large = decode_coded(encode_image(large, coding) or b"", Preprocess(side, side, "rgb"), "test image")
        return fit_image(large, spec)

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
