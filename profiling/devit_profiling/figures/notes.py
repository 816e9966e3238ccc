"""Notes for people, each with the places that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def merged(notes: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Write every text once, after the places at which it was noted; one without a place stands alone.

    >>> list(merged([("window 1", "no sample"), ("", "cut short"), ("window 2", "no sample")]))
    ['window 1; window 2: no sample', 'cut short']
    """
    places: dict[str, dict[str, None]] = {}
    for place, text in notes:
        places.setdefault(text, {})[place] = None
    for text, found in places.items():
        where = "; ".join(filter(None, found))
        yield f"{where}: {text}" if where else text
