"""Figures as text, with the digits that the sensor resolves."""

from __future__ import annotations

import math

from devit_profiling.figures.interval import Estimate

NOT_MEASURED = "not measured"


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure with that many significant digits, or "not measured".

    >>> number(0.046812), number(15479.2), number(None), number(0.0)
    ('0.0468', '15479', 'not measured', '0')
    """
    if value is None:
        return NOT_MEASURED
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 0)}f}"


def joules(value: float | None, resolution: float | None) -> str:
    """Write joules with three significant digits, or fewer where the sensor resolves no more.

    >>> joules(0.046812, 0.00004), joules(0.046812, 0.012), joules(0.0046, 0.2)
    ('0.0468', '0.05', '0.0')
    """
    if value is None or not resolution:
        return number(value)
    places = math.floor(-math.log10(resolution)) + (1 if resolution < 1 else 0)
    plain = number(value)
    shown = len(plain.partition(".")[2])
    return plain if shown <= places else f"{value:.{max(places, 0)}f}"


def joules_95(estimate: Estimate | None, resolution: float | None) -> str:
    """Write the joules of an estimate, and half of its 95 % interval where it has one.

    >>> joules_95(Estimate(0.046812, 5, 0.0456, 0.048), 0.00004), joules_95(Estimate(0.046812, 1), 0.00004)
    ('0.0468 ±0.0012', '0.0468')
    """
    if estimate is None or estimate.low_95 is None or estimate.high_95 is None:
        return joules(estimate.mean if estimate is not None else None, resolution)
    return f"{joules(estimate.mean, resolution)} ±{number((estimate.high_95 - estimate.low_95) / 2, 2)}"


def interval(estimate: Estimate | None, resolution: float | None) -> str:
    """Write the 95 % interval of an estimate, or why there is none."""
    if estimate is None:
        return NOT_MEASURED
    if estimate.low_95 is None or estimate.high_95 is None:
        return "none: one window"
    return f"{joules(estimate.low_95, resolution)} to {joules(estimate.high_95, resolution)}"


def interval_parts(estimate: Estimate | None) -> str:
    """Write the half-widths that an interval is made of.

    >>> interval_parts(Estimate(2.0, 5, 1.5, 2.5, repeats_95=0.3, steps_95=0.4))
    '±0.30 / ±0.40'
    """
    if estimate is None:
        return NOT_MEASURED
    halves = (estimate.repeats_95, estimate.steps_95, estimate.idle_95)
    return " / ".join(f"±{number(half, 2)}" for half in halves if half is not None) or NOT_MEASURED


def duration_text(duration_s: float) -> str:
    """Write how long something takes.

    >>> duration_text(19.6), duration_text(131.2), duration_text(3725)
    ('20 s', '2 min 11 s', '1 h 2 min')
    """
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
