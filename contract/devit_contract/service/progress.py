"""How long work reports its progress, without knowing about terminals."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by work that takes longer than a second."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Report that ``done`` of ``total`` units of the stage are finished; ``note`` is a short remark."""


def no_progress(stage: str, done: float, total: float, note: str = "") -> None:
    """Report nothing."""
