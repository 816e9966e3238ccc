"""What a replay is to have other than it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from devit_contract.arrays import Float32Array
from devit_contract.choices import Policy
from devit_contract.wire.codec import Message

Compute = Callable[[int, Message], Float32Array | None]
"""Gives a device's feature ``(dim,)`` of a request's picture; ``None`` if that is not there."""


class Changes(NamedTuple):
    """What is to be other than it was."""

    policy: Policy | None = None
    """Of all requests."""
    without: frozenset[int] = frozenset()
    """Devices that are not there."""
    compute: Compute | None = None
    """Gives features that were not recorded, or are ``others``."""
    others: frozenset[int] = frozenset()
    """Devices whose recorded features are another graph's, and no use."""

    @property
    def is_none(self) -> bool:
        """Whether everything is as it was."""
        return self.policy is None and not self.without and not self.others
