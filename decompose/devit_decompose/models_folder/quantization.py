"""The validation images that a models folder keeps: INT8 variants are calibrated and their answers measured on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.file_list import FileEntry, describe_file
from devit_contract.artefacts.files import Tensors, write_tensors
from devit_decompose.data.dataset import Split

QUANTIZATION_NAME = "quantization.safetensors"
_LEAST_IMAGES, _MOST_IMAGES = 500, 1000
_MOST_BYTES = 96 << 20
"""Unless the least number of images takes more: 668 images of 224 x 224 pixels."""


def write_quantization(folder: Path, validation: Split, golden: UInt8Array) -> tuple[FileEntry, ...]:
    """Write ``quantization.safetensors``, and describe it for the list; there is none if the golden set took all.

    ``golden`` are the golden set's images ``(n, H, W, C)``: what variants are judged by must not have made them.
    """
    kept = quantization_images(validation, golden)
    if not len(kept["labels"]):
        return ()
    write_tensors(folder / QUANTIZATION_NAME, kept)
    return (describe_file(folder, QUANTIZATION_NAME, "quantization"),)


def quantization_images(validation: Split, golden: UInt8Array) -> Tensors:
    """Draw images ``(n, H, W, C)`` and labels ``(n,)`` of the validation part that are not in the golden set."""
    count = min(max(_MOST_BYTES // golden[0].nbytes, _LEAST_IMAGES), _MOST_IMAGES)
    drawn = np.random.default_rng(2).permutation(len(validation))[: count + len(golden)]
    images = np.asarray(validation.images[drawn])  # decoded once
    known = {image.tobytes() for image in golden}
    fresh = np.array([place for place, image in enumerate(images) if image.tobytes() not in known], np.int64)[:count]
    return {"images": images[fresh], "labels": validation.labels[drawn[fresh]]}
