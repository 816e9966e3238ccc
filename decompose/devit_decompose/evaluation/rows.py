"""Rows of the tables that show accuracies."""

from __future__ import annotations


def accuracies_by_size(accuracies: dict[int, float]) -> list[list[str]]:
    """Worst and best subset of each number of devices, from percent by mask."""
    by_size: dict[int, list[float]] = {}
    for mask, accuracy in accuracies.items():
        by_size.setdefault(mask.bit_count(), []).append(accuracy)
    return [[str(size), percent(min(found)), percent(max(found))] for size, found in sorted(by_size.items())]


def percent(value: float | None) -> str:
    """Write an accuracy, if there is one.

    >>> percent(92.654), percent(None)
    ('92.65%', '-')
    """
    return "-" if value is None else f"{value:.2f}%"
