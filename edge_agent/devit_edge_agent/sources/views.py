"""Simulates the cameras of a bundle with own views: from pictures of whole scenes to a folder of pictures a device."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.files import make_folder, write_bytes
from devit_contract.artefacts.manifest import Bundle, Preprocess
from devit_contract.artefacts.preprocess import load_image
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress, no_progress


def write_views(bundle: Bundle, pictures: Iterable[Path], out: Path, progress: Progress = no_progress) -> list[Path]:
    """Write what each device sees of each picture to ``out``/0, ``out``/1 and so on, and give these folders.

    The pictures keep their order, as each folder has them under rising numbers. A ``folder:`` source makes exactly the
    images of them that training and ``devit evaluate`` made.

    Raises:
        InputError: The devices of the bundle all see the same image, or a file cannot be read or written.
    """
    if bundle.manifest.views != "own":
        raise InputError(
            f"{bundle.folder}: expected a bundle with own views, found one whose devices see the same image"
        )
    folders = [out / str(device) for device in range(len(bundle.manifest.submodels))]
    for folder in folders:
        make_folder(folder)
    paths = list(pictures)
    for number, path in enumerate(paths):
        progress("views", number, len(paths), path.name)
        scene = load_image(path, bundle.manifest.preprocess)[np.newaxis]
        for folder, graph in zip(folders, bundle.manifest.submodels, strict=True):
            write_bytes(folder / f"{number:06}.png", _as_file(graph.seen(scene)[0], bundle.manifest.preprocess))
    progress("views", len(paths), len(paths))
    return folders


def _as_file(image: UInt8Array, spec: Preprocess) -> bytes:
    """Pack an image ``(H, W, C)`` so that the preprocessing gives it back: in the middle of what it would cut off."""
    side = spec.resize_to
    height, width = max(side, spec.height), max(side, spec.width)
    top, left = round((height - spec.height) / 2), round((width - spec.width) / 2)
    framed = np.zeros((height, width, image.shape[2]), np.uint8)
    framed[top : top + spec.height, left : left + spec.width] = image
    packed = io.BytesIO()
    Image.fromarray(framed[..., 0] if image.shape[2] == 1 else framed).save(packed, "PNG")
    return packed.getvalue()
