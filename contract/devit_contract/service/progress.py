"""How long work tells whoever watches how far it is, without knowing about terminals."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from time to time by work that takes longer than a second."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Say that ``done`` of ``total`` units of the stage are finished; ``note`` is a short remark."""
        ...


def no_progress(stage: str, done: float, total: float, note: str = "") -> None:
    """Tell nobody."""
