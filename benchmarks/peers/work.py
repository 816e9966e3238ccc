"""What every side serves: the same engines, the same fusion, the same images; a null model and a real one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from benchmarks.network.bundles import write_null_bundle

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store
from devit_engines.engine import Engine, EngineSpec, ModelRef
from devit_engines.null import NullEngine
from devit_pipeline.demo import SHIPPED, test_images

Model = Literal["null", "real"]
NULL_SHAPE, NULL_DIM, NULL_CLASSES = (32, 32, 3), 192, 100
"""As the benchmark ``paced`` has them."""
IMAGES = 64
BUNDLE = SHIPPED / "bundle"


@dataclass(frozen=True)
class Work:
    """A model that is spread over some devices; it pickles, so that each process makes its part itself."""

    model: Model
    devices: int
    bundle: Path
    store: Path

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, ``(H, W, C)``."""
        return Bundle(self.bundle).manifest.preprocess.shape

    @property
    def classes(self) -> int:
        """Numbers in an answer."""
        return len(Bundle(self.bundle).manifest.labels)

    def images(self) -> UInt8Array:
        """Give the images that clients send by turns, ``(n, H, W, C)``."""
        if self.model == "real":
            return test_images(Bundle(self.bundle))[0][:IMAGES]
        return np.random.default_rng(1).integers(0, 256, (IMAGES, *self.shape), np.uint8)

    def engine(self, part: ModelRef) -> Engine:
        """Load the engine of a device, or of the undivided model, and warm it up."""
        engine: Engine
        if self.model == "real":
            engine = load_engine(Bundle(self.bundle), Store(self.store), part, backend="ort")
        else:
            dim = NULL_CLASSES if part == "baseline" else NULL_DIM
            engine = NullEngine(EngineSpec("null", self.shape, dim))
        engine.warm_up(3)
        return engine

    def worker(self, part: ModelRef) -> Callable[[bytes], bytes]:
        """Make what a worker does: an image's bytes become those of a feature, float32."""
        return partial(_feature, self.engine(part), self.shape)

    def front(self) -> Callable[[list[bytes]], bytes]:
        """Make what a front does: the features of all devices become logits, float32."""
        fusion = Fusion(Bundle(self.bundle).fusion_head())
        return partial(_fused, fusion)

    @property
    def everybody(self) -> int:
        """The mask of all devices."""
        return (1 << self.devices) - 1

    def expected(self, images: UInt8Array, part: ModelRef | None, masks: list[int]) -> list[Float32Array]:
        """Answer images in this process, without any transport.

        Args:
            images: Shape ``(n, H, W, C)``.
            part: The one model that answers alone; ``None`` for the fusion of devices.
            masks: Devices in the answer to each image.
        """
        if part is not None:
            with self.engine(part) as engine:
                return [engine.features(image[None])[0] for image in images]
        fusion = Fusion(Bundle(self.bundle).fusion_head())
        engines = [self.engine(device) for device in range(self.devices)]
        features = [{d: engine.features(image[None])[0] for d, engine in enumerate(engines)} for image in images]
        return [
            fusion.logits({device: feature for device, feature in found.items() if mask >> device & 1})
            for found, mask in zip(features, masks, strict=True)
        ]


def null_work(devices: int, place: Path) -> Work:
    """Prepare engines that answer at once: what is left is the transport."""
    bundle = place / f"null-{devices}"
    write_null_bundle(bundle, (NULL_DIM,) * devices, NULL_CLASSES, NULL_SHAPE)
    return Work("null", devices, bundle, place / "store")


def real_work(devices: int, place: Path) -> Work:
    """Prepare the shipped submodels, ONNX Runtime with one thread each."""
    build_engines(Bundle(BUNDLE), Store(place / "store"), backend="ort", baseline=True)
    return Work("real", devices, BUNDLE, place / "store")


def _feature(engine: Engine, shape: tuple[int, int, int], image: bytes) -> bytes:
    return engine.features(np.frombuffer(image, np.uint8).reshape(1, *shape))[0].tobytes()  # (1, dim) -> (dim,)


def _fused(fusion: Fusion, features: list[bytes]) -> bytes:
    return fusion.logits({device: np.frombuffer(each, np.float32) for device, each in enumerate(features)}).tobytes()
