"""Features of frozen backbones, computed once and kept in files that are whole or absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
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
        """Make the folder.

        Args:
            folder: It may hold features of other models and images too.
            preprocess: How pictures become images.
            workers: Processes that decode pictures.

        Raises:
            InputError: It cannot be written.
        """
        make_folder(folder)
        self.folder = folder
        self.preprocess = preprocess
        self.workers = workers

    def features(
        self, model: Model, weights: str, images: Images, digest: str, tell: Callable[[int], None]
    ) -> Float32Array:
        """Find features, or compute them; mapped from the file, so that they need not fit in memory.

        Args:
            model: The backbone, where it is to compute.
            weights: Its :func:`weights_digest`.
            images: Shape ``(n, H, W, C)``.
            digest: Of the images.
            tell: Told how many images are done.

        Raises:
            InputError: The file cannot be written, or one that was there is damaged; or a picture is.
        """
        spec = msgspec.json.encode(self.preprocess)
        key = hashlib.sha256(b"\0".join((weights.encode(), digest.encode(), spec))).hexdigest()[:32]
        path = self.folder / f"{key}.npy"
        if not path.exists():
            self._compute(path, model, images, tell)
        tell(len(images))
        return _mapped(path, (len(images), model.config.feature_dim))

    def _compute(self, path: Path, model: Model, images: Images, tell: Callable[[int], None]) -> None:
        device = next(model.parameters()).device
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), model.config.feature_dim)}
        batches = _Batches(images)
        workers = self.workers if isinstance(images, LazyImages) else 0
        draft = None
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=f".{path.stem}.", delete=False) as file:
                draft = Path(file.name)
                np.lib.format.write_array_header_1_0(file, header)
                done = 0
                # Not a mapped file: that ends the process where the disk is full.
                with torch.inference_mode():
                    for batch in made_by_workers(batches.batch, len(batches), workers):
                        made = model.features(torch.from_numpy(batch).to(device)).float().cpu().numpy()
                        file.write(made.astype("<f4", order="C").tobytes())
                        done += len(batch)
                        tell(done)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException as err:
            if draft is not None:
                draft.unlink(missing_ok=True)
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


class _Batches:
    """Images in order, ``(B, H, W, C)`` a batch."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return -(-len(self.images) // _BATCH)

    def batch(self, number: int) -> UInt8Array:
        """Take one batch."""
        return np.array(self.images[number * _BATCH : (number + 1) * _BATCH])
