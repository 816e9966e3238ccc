"""Cells of the tiny bundle as processes of this machine; benchmarks may use them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from devit_pipeline.local_cell import LocalCell, LocalDevice

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"

MakeCell = Callable[..., LocalCell]


def tiny_devices(engine: str = "built", **settings: Any) -> list[LocalDevice]:  # noqa: ANN401 - passed on as it is
    """Describe jetson1 and jetson2, one for each submodel of the tiny bundle."""
    return [LocalDevice(f"jetson{index + 1}", index, engine=engine, **settings) for index in range(2)]


@contextmanager
def cell_maker(folder: Path, store: Path) -> Iterator[MakeCell]:
    """Bring up one cell on request; ``settings`` are those of LocalCell, the rest is for its devices."""
    with ExitStack() as stack:

        def make(
            *,
            engine: str = "built",
            tegrastats: tuple[str, ...] = (),
            root: str = "/",
            **settings: Any,  # noqa: ANN401 - passed on as it is
        ) -> LocalCell:
            devices = tiny_devices(engine, tegrastats=tegrastats, root=root)
            return stack.enter_context(LocalCell(TINY, folder / "cell", devices, store=store, **settings))

        yield make
