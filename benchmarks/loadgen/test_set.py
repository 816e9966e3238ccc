"""Test images of Fashion-MNIST with their labels, and which of them the shipped cell is known to answer right."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Int64Array, UInt8Array
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError
from devit_pipeline.demo import SHIPPED, test_images

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts it."""
BUNDLE = SHIPPED / "bundle"
_KEPT = Path(__file__).parents[1] / "accuracy" / "results" / "devit-s1.json"
_HEADER_BYTES = {"images-idx3": 16, "labels-idx1": 8}
"""See http://yann.lecun.com/exdb/mnist; the product's reader of these files needs torch."""


@dataclass(frozen=True)
class TestSet:
    """Images, what they show, and what the cell was found to make of them when it was trained."""

    images: UInt8Array
    """Shape ``(n, 28, 28, 1)``."""
    labels: Int64Array
    known: npt.NDArray[np.bool_]
    """Whether torch's cell of all four devices answers each of them right."""


def whole(folder: Path) -> TestSet:
    """Read all 10,000 images.

    Raises:
        InputError: A file is missing or damaged.
    """
    labels = _idx(folder, "labels-idx1").astype(np.int64)
    images = _idx(folder, "images-idx3").reshape(-1, 28, 28, 1)  # (n * 28 * 28,) -> (n, 28, 28, 1)
    return TestSet(images, labels, _known(len(labels)))


def first_thousand() -> TestSet:
    """Take those that come with the package: the first 1,000."""
    images, labels = test_images(Bundle(BUNDLE))
    return TestSet(images, labels, _known(len(labels)))


def _idx(folder: Path, part: str) -> UInt8Array:
    path = folder / f"t10k-{part}-ubyte.gz"
    try:
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=_HEADER_BYTES[part])
    except (OSError, EOFError, zlib.error) as err:
        raise InputError(f"{path}: cannot be read ({err}): apt install dataset-fashion-mnist, or set --data") from err


def _known(count: int) -> npt.NDArray[np.bool_]:
    packed = zlib.decompress(base64.b64decode(json.loads(_KEPT.read_bytes())["right"]))
    return np.unpackbits(np.frombuffer(packed, np.uint8))[:count].astype(bool)
