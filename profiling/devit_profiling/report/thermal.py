"""The thermal figures of sustained windows, cold and hot, for terminal and page."""

from __future__ import annotations

from devit_profiling.figures.analysis import Report
from devit_profiling.figures.interval import mean_of
from devit_profiling.figures.thermal import SETTLED_C_PER_MIN, Sustained, ThermalComparison, ThermalFigures
from devit_profiling.report.number_format import duration_text, interval, joules, number

THERMAL_HEADER = ("device", "windows", "°C", "J/inf.", "95 % interval", "p50 ms", "p99 ms")


def _sustained(report: Report) -> Sustained | None:
    """Find the scenario that was sustained."""
    return next((scenario.sustained for scenario in report.scenarios if scenario.sustained is not None), None)


def thermal_title(report: Report) -> str:
    """Name the table of cold and hot figures."""
    return "Cold and hot: SIMULATED power" if report.is_simulated else "Cold and hot"


def thermal_rows(report: Report) -> list[list[str]]:
    """Give the rows of the table: two per device, and two of the cell; none where nothing was sustained."""
    found = _sustained(report)
    if found is None:
        return []
    cold, hot = (
        f"{title} {windows[0]}-{windows[-1]}" if len(windows) > 1 else f"{title} {windows[0]}"
        for title, windows in (("cold", found.cold_windows), ("hot", found.hot_windows))
    )
    return [
        _row(device, title, figures)
        for device in (*found.devices, found.cell)
        for title, figures in ((cold, device.cold), (hot, device.hot))
    ]


def thermal_text(report: Report) -> str:
    """Say how the sustained windows ended; empty where nothing was sustained."""
    found = _sustained(report)
    if found is None:
        return ""
    slopes = [
        f"{device.name} {device.zone} {device.slope_c_per_min:+.2f} °C a minute"
        for device in found.devices
        if device.slope_c_per_min is not None
    ]
    lasted = f"windows of all devices together lasted {duration_text(found.windows_s)}"
    if not slopes:
        return f"{lasted}; no device reports its temperature, so it is unknown whether it settled"
    ended = "had settled" if found.is_settled else "had not settled, so hot figures may still grow"
    return (
        f"{lasted}; temperature {ended}: {', '.join(slopes)} over the last windows, expected at most "
        f"{SETTLED_C_PER_MIN:g}"
    )


def _row(device: ThermalComparison, title: str, figures: ThermalFigures) -> list[str]:
    return [
        device.name,
        title,
        number(figures.temperature_c) if figures.temperature_c is not None else "",
        joules(mean_of(figures.joules), device.resolution_j),
        interval(figures.joules, device.resolution_j),
        number(figures.p50_ms),
        number(figures.p99_ms),
    ]
