"""The engine protocol: images in, features out, whatever computes them; with the checks that every engine shares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.choices import Role
from devit_contract.errors import EngineError
from devit_contract.service.closing import Closing

ModelRef = int | Literal["baseline"]
"""Index of a submodel, or the bundle's baseline model."""


class CannotCompileError(EngineError):
    """A back end makes no engine of a graph; another variant of it may do."""


class Engine(AbstractContextManager["Engine"], Protocol):
    """One loaded submodel, or the baseline; a context manager that frees it."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one image."""

    @property
    def output_dim(self) -> int:
        """Numbers per image: the feature dimension, or the number of classes of the baseline."""

    @property
    def revision(self) -> int:
        """Name of this build, an unsigned 32-bit number; answers of different revisions must not be mixed."""

    def features(self, images: UInt8Array) -> Float32Array:
        """Map images ``(batch, H, W, C)``, uint8, to features ``(batch, dim)``, float32, owned by the caller.

        Raises:
            EngineError: The images have another type or shape, the back end failed, or an output is not finite.
        """

    def warm_up(self, runs: int) -> None:
        """Answer ``runs`` black images, so that the first real one is as fast as the rest."""

    def close(self) -> None:
        """Free the model; calling it twice is allowed, ``features`` afterwards is an error."""


@contextmanager
def closed_on_failure(engine: Engine) -> Iterator[None]:
    """Close an engine if the block fails; what went wrong first stays the cause."""
    try:
        yield
    except BaseException:
        with suppress(EngineError):
            engine.close()
        raise


def role_of(model: ModelRef) -> tuple[Role, int | None]:
    """Give the role and the index by which a manifest names a model's files."""
    return ("baseline", None) if model == "baseline" else ("submodel", model)


def name_of(model: ModelRef) -> str:
    """Name a model for people.

    >>> name_of(0), name_of("baseline")
    ('submodel 0', 'baseline')
    """
    return model if model == "baseline" else f"submodel {model}"


@dataclass(frozen=True)
class EngineSpec:
    """What an engine has to be, as the bundle says."""

    name: str
    """For messages: ``submodel 0``, ``baseline``."""
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    output_dim: int
    revision: int = 0
    """Unsigned, 32 bits."""


class CheckedEngine(Closing):
    """Base of the engines here: a back end fills in :meth:`_run`, what goes in and comes out is checked once."""

    def __init__(self, spec: EngineSpec) -> None:
        """Keep what the engine has to be."""
        self.spec = spec
        self.image_shape, self.output_dim, self.revision = spec.image_shape, spec.output_dim, spec.revision
        self._is_closed = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of how it runs, for ``engine.json``."""
        return ()

    def features(self, images: UInt8Array) -> Float32Array:
        outputs = self.unchecked_features(images)
        bad = outputs.size - int(np.count_nonzero(np.isfinite(outputs)))
        if bad:
            raise EngineError(
                f"{self.spec.name}: expected finite outputs, found {bad} of {outputs.size} numbers that are not: "
                "if it stays, run devit build --precision fp32, or devit export with a larger --headroom"
            )
        return outputs

    def unchecked_features(self, images: UInt8Array) -> Float32Array:
        """As :meth:`features`, but numbers may be NaN or infinite: the accuracy check counts them."""
        self._check_images(images)
        outputs = self._run(np.ascontiguousarray(images))
        expected = (len(images), self.output_dim)
        if outputs.shape != expected or outputs.dtype != np.float32:
            raise EngineError(
                f"{self.spec.name}: expected float32 outputs {expected}, found {outputs.dtype} {outputs.shape}: "
                "make the bundle again with devit export"
            )
        return outputs

    def warm_up(self, runs: int) -> None:
        black = np.zeros((1, *self.image_shape), np.uint8)
        for _ in range(runs):
            self.features(black)

    def close(self) -> None:
        self._is_closed = True

    @abstractmethod
    def _run(self, images: UInt8Array) -> Float32Array:
        """Compute the features of checked, contiguous images."""

    def _check_images(self, images: UInt8Array) -> None:
        if self._is_closed:
            raise EngineError(f"{self.spec.name}: the engine is closed: load it again")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            height, width, channels = self.image_shape
            raise EngineError(
                f"{self.spec.name}: expected uint8 images (batch, {height}, {width}, {channels}), "
                f"found {images.dtype} {images.shape}: prepare them as the bundle's manifest.json says"
            )
