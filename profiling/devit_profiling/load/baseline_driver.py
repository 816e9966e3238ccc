"""The baseline model on one device of a cell: loaded, run back to back, and freed by request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from msgspec import structs

from devit_contract.errors import LinkError
from devit_contract.wire.client import Client
from devit_contract.wire.messages import Mark
from devit_profiling.load.schedule import STEP_S
from devit_profiling.record.record import BaselineRecord, BaselineWindow

_FREED_S = 10.0


class BaselineDriver:
    """Drives the model through the phases of a scenario."""

    def __init__(self, client: Client, device: str, wait: Callable[[float], None], show: Callable[[str], None]) -> None:
        """Keep who runs the model, how seconds pass, and who is told again and again that it is loading."""
        self.record: BaselineRecord | None = None
        """What the model has done; absent before it is loaded."""
        self._client = client
        self._device = device
        self._wait = wait
        self._show = show

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Have the device hold the model in the block, and free its memory at the end in any case.

        Raises:
            LinkError: The device does not answer, or cannot load it.
        """
        self._client.baseline(self._device, "load")
        try:
            while (state := self._client.baseline(self._device, "state")).state != "resting":
                self._show("loading")
                self._wait(STEP_S)
            self.record = BaselineRecord(self._device, state.engine, ())
            yield
        finally:
            with suppress(LinkError):  # an agent without a link frees it on its own
                end_s = time.monotonic() + _FREED_S
                self._client.baseline(self._device, "free")
                while self._client.baseline(self._device, "state").state != "nothing" and time.monotonic() < end_s:
                    self._wait(STEP_S / 5)

    def run(self) -> None:
        """Start to run it back to back."""
        self._client.baseline(self._device, "run")

    def end_window(self, number: int, *, is_last: bool) -> None:
        """Note the times since the last call, 0: of the warm-up; after the last window let the model rest."""
        state = self._client.baseline(self._device, "rest" if is_last else "state")
        if number and self.record is not None:
            window = BaselineWindow(number, state.inferences, state.p50_ms, state.p95_ms, state.p99_ms)
            self.record = structs.replace(self.record, windows=(*self.record.windows, window))

    def snapshot(self) -> Mark:
        """Ask for a snapshot that counts this model instead of the submodel."""
        snapshot = self._client.mark(self._device)
        return structs.replace(snapshot, inferences=snapshot.baseline_inferences, busy_ns=snapshot.baseline_busy_ns)
