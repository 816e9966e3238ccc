"""Features of frozen backbones, computed once and kept in files that are whole or absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.files import make_folder
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError
from devit_decompose.data.lazy_images import LazyImages
from devit_decompose.data.workers import made_by_workers
from devit_decompose.models.inference import Images
from devit_decompose.models.model import Model

_BATCH = 128


def default_cache() -> Path:
    """Find the user's cache: ``$XDG_CACHE_HOME/devit/features``, else ``~/.cache/devit/features``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "devit" / "features"


class FeatureCache:
    """A folder of ``.npy`` files, float32 ``(n, feature_dim)``, named by what the features depend on."""

    def __init__(self, folder: Path, preprocess: Preprocess, workers: int) -> None:
        """Make the folder, which may hold features of other models and images too; ``workers`` decode pictures."""
        make_folder(folder)
        self.folder = folder
        self.preprocess = preprocess
        self.workers = workers

    def features(
        self, model: Model, weights: str, images: Images, digest: str, report: Callable[[int], None]
    ) -> Float32Array:
        """Find the features of images ``(n, H, W, C)``, or compute them; mapped from the file, they need no memory.

        Args:
            model: The backbone, on the device that computes.
            weights: Its :func:`weights_digest`.
            images: All of them.
            digest: Of the images.
            report: Called with the number of images done.

        Raises:
            InputError: The file cannot be written, or an existing one or a picture is damaged.
        """
        spec = msgspec.json.encode(self.preprocess)
        key = hashlib.sha256(b"\0".join((weights.encode(), digest.encode(), spec))).hexdigest()[:32]
        path = self.folder / f"{key}.npy"
        if not path.exists():
            self._compute(path, model, images, report)
        report(len(images))
        return _mapped(path, (len(images), model.config.feature_dim))

    def _compute(self, path: Path, model: Model, images: Images, report: Callable[[int], None]) -> None:
        device = next(model.parameters()).device
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), model.config.feature_dim)}
        workers = self.workers if isinstance(images, LazyImages) else 0
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=f".{path.stem}.", delete=False) as file:
                temporary = Path(file.name)
                np.lib.format.write_array_header_1_0(file, header)
                done = 0
                # Not a mapped file: that ends the process where the disk is full.
                with torch.inference_mode():
                    for batch in made_by_workers(partial(_batch, images), -(-len(images) // _BATCH), workers):
                        made = model.features(torch.from_numpy(batch).to(device)).float().cpu().numpy()
                        file.write(made.astype("<f4", order="C").tobytes())
                        done += len(batch)
                        report(done)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as err:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            if isinstance(err, OSError):
                raise InputError(f"{path}: cannot be written: {err.strerror}: choose another --cache") from err
            raise


def weights_digest(model: Model) -> str:
    """Digest what a backbone's features depend on, as 64 hex digits: its shape and weights without its own head."""
    whole = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(model.config, classes=())))
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(("head.", "distillation_head.")):
            whole.update(name.encode() + b"\0")
            whole.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return whole.hexdigest()


def _mapped(path: Path, shape: tuple[int, int]) -> Float32Array:
    try:
        found: Float32Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as err:
        raise InputError(f"{path}: expected stored features, found a damaged file ({err}): remove it") from err
    if found.shape != shape or found.dtype != np.float32:
        raise InputError(f"{path}: expected stored features {shape}, found {found.shape}: remove it")
    return found


def _batch(images: Images, number: int) -> UInt8Array:
    return np.array(images[number * _BATCH : (number + 1) * _BATCH])
