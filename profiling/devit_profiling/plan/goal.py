"""Goals: what a cell has to keep, written ``deadline-ms=30, rate=20, survive=1``."""

from __future__ import annotations

from dataclasses import dataclass

from devit_contract.errors import InputError

_KEYS = {
    "deadline-ms": ("deadline_ms", 0.01, 60_000.0),
    "rate": ("rate_hz", 0.001, 100_000.0),
    "survive": ("survive", 0.0, 63.0),
    "watts": ("watts", 0.001, 1_000_000.0),
    "accuracy": ("accuracy", 0.0, 100.0),
}
"""By the name that users write: field, lowest and highest value."""


@dataclass(frozen=True)
class Goal:
    """All of it has to be kept at the same time."""

    deadline_ms: float
    """That 99 % of the answers keep, from request to answer."""
    rate_hz: float = 1.0
    """Answers per second."""
    survive: int = 0
    """Any so many devices may be lost, and the rest of the goal is still kept."""
    watts: float | None = None
    """Of all devices that are switched on, and of what ``[[extra]]`` names."""
    accuracy: float | None = None
    """At least, in percent of the validation images."""

    @property
    def text(self) -> str:
        """As it is written."""
        values = {key: getattr(self, field) for key, (field, _, _) in _KEYS.items()}
        return ", ".join(f"{key}={value:g}" for key, value in values.items() if value is not None)


def parse_goal(text: str, deadline_ms: float) -> Goal:
    """Read a goal; the deadline is that of the fleet where it is not written.

    >>> parse_goal("rate=20, survive=1", deadline_ms=50).text
    'deadline-ms=50, rate=20, survive=1'

    Raises:
        InputError: A key is not known or twice, or a value is not possible.
    """
    values: dict[str, float] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in _KEYS or key in values:
            problem = "there twice" if key in values else f"not one of {', '.join(_KEYS)}"
            raise InputError(f"--goal: {key!r} is {problem}: write e.g. deadline-ms=30, rate=20, survive=1, watts=30")
        values[key] = _number(key, value, *_KEYS[key][1:])
    return Goal(
        deadline_ms=values.get("deadline-ms", deadline_ms),
        rate_hz=values.get("rate", 1.0),
        survive=int(values.get("survive", 0)),
        watts=values.get("watts"),
        accuracy=values.get("accuracy"),
    )


def _number(key: str, value: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not low <= number <= high or (key == "survive" and number != int(number)):
        kind = "a whole number of devices" if key == "survive" else f"{low:g} to {high:g}"
        raise InputError(f"--goal: {key}: expected {kind}, found {value!r}: write e.g. {key}={max(low, 1):g}")
    return number
