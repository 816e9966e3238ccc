"""An engine in a thread of its own, for a caller in another one.

CUDA binds an engine to the thread that opened it (:mod:`devit_engines.cuda.api`). One that is made ready beside a
thread that has no time to wait can therefore not be handed to it; its calls can.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.errors import EngineError
from devit_engines.engine import Engine

_Result = TypeVar("_Result")


class OwnThreadEngine:
    """An :class:`~devit_engines.engine.Engine` that is opened, run and closed in one thread; callers wait for it.

    The way there and back costs a call 21 us, one in a hundred 40 us: measured beside a null engine on a server's CPU
    that was busy otherwise.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Start the thread, and ``make`` the engine in it without waiting."""
        self._executor = ThreadPoolExecutor(1, "engine")
        self._is_closed = False
        self.opened: Future[Engine] = self._executor.submit(make)
        """Done when the engine has been made, or what ``make`` raised stands in it."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one image."""
        return self.opened.result().image_shape

    @property
    def output_dim(self) -> int:
        """Numbers per image."""
        return self.opened.result().output_dim

    @property
    def revision(self) -> int:
        """Name of this build, an unsigned 32-bit number."""
        return self.opened.result().revision

    def features(self, images: UInt8Array) -> Float32Array:
        """Map images ``(batch, H, W, C)``, uint8, to features ``(batch, dim)``, float32, owned by the caller.

        Raises:
            EngineError: As the engine itself, or this one is closed.
        """
        return self._wait_for(lambda engine: engine.features(images))

    def warm_up(self, runs: int) -> None:
        """Answer ``runs`` black images, so that the first real one is as fast as the rest."""
        self._wait_for(lambda engine: engine.warm_up(runs))

    def close(self) -> None:
        """Free the model and end the thread, once the engine has been made; calling it twice is allowed."""
        if self._is_closed:
            return
        self._is_closed = True
        with self._executor:
            self._executor.submit(self._close).result()

    def __enter__(self) -> OwnThreadEngine:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the model and end the thread."""
        self.close()

    def _wait_for(self, work: Callable[[Engine], _Result]) -> _Result:
        if self._is_closed:
            raise EngineError("expected an open engine, found it closed: load it again")
        return self._executor.submit(lambda: work(self.opened.result())).result()

    def _close(self) -> None:
        if self.opened.exception() is None:
            self.opened.result().close()
