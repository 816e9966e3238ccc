"""Makes things one by one in worker processes, in order; errors keep their class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from devit_contract.errors import DevitError

Made = TypeVar("Made")


def made_by_workers(make: Callable[[int], Made], count: int, workers: int) -> Iterator[Made]:
    """Yield ``make(0)`` to ``make(count - 1)``; ``make`` can be pickled, and with 0 workers is called in this process.

    Raises:
        DevitError: ``make`` raised it.
    """
    numbered = _Numbered(make, count)
    # A generator of its own: else the loader takes a number from the global one.
    own = torch.Generator()
    for made in DataLoader(numbered, batch_size=None, num_workers=workers, collate_fn=_unchanged, generator=own):
        if isinstance(made, DevitError):
            raise made
        yield made


class _Numbered(Dataset["Made | DevitError"], Generic[Made]):
    """Returns errors, since one raised in a worker loses its class and grows longer."""

    def __init__(self, make: Callable[[int], Made], count: int) -> None:
        self._make = make
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Made | DevitError:
        try:
            return self._make(number)
        except DevitError as err:
            return err


def _unchanged(made: object) -> object:
    return made
