"""The figures of a report: power over time, energy, latency, and where the time of an answer went.

The name of a figure is unique in its page; identifiers begin with it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from devit_profiling.figures.answers import TimeParts
from devit_profiling.figures.conditions import over_current
from devit_profiling.figures.interval import Estimate
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.figures.power import Power, rail_names
from devit_profiling.record.clocks import TimeAxis
from devit_profiling.record.record import IDLE, IDLE_AFTER, SETTLE, WARM_UP, WINDOW, AnswerRow, Phase
from devit_profiling.report.number_format import joules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASE_COLOURS = {IDLE: "#cfe3f7", IDLE_AFTER: "#cfe3f7", WARM_UP: "#fde9c4", WINDOW: "#d5efd3"}
"""Of the bands; the page's key takes them from here."""
OVER_CURRENT_COLOUR = "#b3261e"
_EDGE = 0.96
_RAIL_COLOURS = ("#c44e52", "#4c72b0", "#dd8452", "#8172b3", "#64b5cd")
_CURVE_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")
_PART_COLOURS = ("#b8b8b8", "#8172b3", "#4c72b0", "#c44e52", "#55a868")
_TOTAL_COLOUR, _ABOVE_COLOUR = "#4c72b0", "#dd8452"
_CURVE_POINTS = 401
_BINS = 60
_WIDTH_IN = 6.6
"""A phone shows it at about 0.6 of its size, and can still be read."""


def power_svg(name: str, power: Power, phases: Sequence[Phase], axis: TimeAxis) -> str:
    """Draw a device's rails and total over the whole run, with a shaded band for each phase; from one sample on.

    Windows in which the board slowed itself down have a red edge at the top.
    """
    device, samples = power.device.name, power.log.samples
    with open_canvas(name, height_in=3.0) as canvas:
        axes = canvas.axes
        times_s = np.array([axis.device_s(device, sample.monotonic_ns) for sample in samples])
        _shade(axes, device, phases, axis)
        for rail, colour in zip(rail_names(power.log), _RAIL_COLOURS * 4, strict=False):
            power_mw = np.array([sample.rails_mw.get(rail, np.nan) for sample in samples], np.float64)
            has_rail = np.isfinite(power_mw)
            axes.plot(times_s[has_rail], power_mw[has_rail] / 1e3, color=colour, linewidth=0.9, label=rail)
        if power.time_s.size:
            style: dict[str, Any] = {"color": "#111111", "linewidth": 1.4, "linestyle": (0, (4, 1.5)), "zorder": 3}
            total_s = [axis.device_s(device, round(time_s * 1e9)) for time_s in power.time_s.tolist()]
            axes.plot(total_s, power.total_w, label="total", **style)
        axes.set_xlim(0.0, max(times_s[-1], 1e-3))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xlabel("seconds since the start of the run")
        axes.set_ylabel("power, W (SIMULATED)" if power.is_simulated else "power, W")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=4, frameon=False, fontsize=9)
        return canvas.svg()


def energy_svg(name: str, energies: Sequence[tuple[str, DeviceEnergy]]) -> str:
    """Draw joules per inference of at least one titled device, total and above idle, with their 95 % intervals."""
    estimates = [
        each for _, energy in energies for each in (energy.total_j_per_inference, energy.dynamic_j_per_inference)
    ]
    largest_j = max(abs(each.mean) for each in estimates if each is not None)
    unit, scale = ("J", 1.0) if largest_j >= 1 else ("mJ", 1e3)
    with open_canvas(name, height_in=0.6 + 0.62 * len(energies)) as canvas:
        axes = canvas.axes
        for place, (_, energy) in enumerate(energies):
            step = (energy.resolution_j_per_inference or 0.0) * scale
            _bar(axes, place - 0.2, energy.total_j_per_inference, scale, step, _TOTAL_COLOUR)
            _bar(axes, place + 0.2, energy.dynamic_j_per_inference, scale, step, _ABOVE_COLOUR)
        # Outside of the picture, for the legend alone: the first device may lack one of the two.
        for title, colour in (("total", _TOTAL_COLOUR), ("above idle", _ABOVE_COLOUR)):
            axes.barh(-9, 0, color=colour, label=title)
        axes.set_yticks(range(len(energies)), [title for title, _ in energies])
        axes.set_ylim(len(energies) - 0.5, -0.5)
        axes.margins(x=0.14)
        mark = " (SIMULATED)" if any(energy.is_simulated for _, energy in energies) else ""
        axes.set_xlabel(f"{unit} per inference, 95 % interval of the mean{mark}")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9)
        return canvas.svg()


def latency_svg(name: str, rows: Mapping[str, Sequence[AnswerRow]]) -> str:
    """Draw the share of answers over latency, a curve per scenario; failed answers are left out."""
    with open_canvas(name, height_in=2.8) as canvas:
        axes = canvas.axes
        for (scenario, answers), colour in zip(rows.items(), _CURVE_COLOURS * 8, strict=False):
            latency_ms = np.array([row.latency_ms for row in answers if row.is_answered])
            if latency_ms.size:
                share = np.linspace(0.0, 1.0, min(_CURVE_POINTS, latency_ms.size + 1))
                values_ms = np.quantile(latency_ms, share)
                axes.plot(values_ms, 100 * share, color=colour, linewidth=1.5, label=scenario)
        _log_time(axes)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        axes.set_ylim(0.0, 101.0)
        axes.set_xlabel("milliseconds from request to answer (logarithmic)")
        axes.set_ylabel("share of answers, %")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=4, frameon=False, fontsize=9)
        return canvas.svg()


def histogram_svg(name: str, arrivals_ms: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """Draw how long features took to arrive, a histogram a device, with p50, p95 and p99; shapes ``(n,)``, n > 0."""
    low_ms = max(min(float(times_ms.min()) for times_ms in arrivals_ms.values()), 1e-3)
    high_ms = max(max(float(times_ms.max()) for times_ms in arrivals_ms.values()), low_ms)
    edges_ms = np.geomspace(low_ms * 0.97, high_ms * 1.03, _BINS + 1)
    with open_canvas(name, height_in=0.5 + 1.25 * len(arrivals_ms), rows=len(arrivals_ms)) as canvas:
        for axes, (device, times_ms), colour in zip(
            canvas.rows, arrivals_ms.items(), _CURVE_COLOURS * 32, strict=False
        ):
            weights = np.full(times_ms.shape, 100 / times_ms.size)
            axes.hist(np.maximum(times_ms, low_ms), edges_ms.tolist(), weights=weights, color=colour, alpha=0.55)
            p50, p95, p99 = np.percentile(times_ms, (50, 95, 99)).tolist()
            for value, style in ((p50, "-"), (p95, "--"), (p99, ":")):
                axes.axvline(value, color="#222222", linewidth=1.0, linestyle=style)
            title = f"{device}: p50 {p50:.3g} (—), p95 {p95:.3g} (- -), p99 {p99:.3g} ms (···)"
            axes.set_title(title, loc="left", fontsize=9, pad=3)
            axes.set_ylabel("%")
        _log_time(canvas.rows[-1])
        canvas.rows[-1].set_xlabel("milliseconds from dispatch to the feature's arrival at the node (logarithmic)")
        canvas.figure.subplots_adjust(hspace=0.42)
        return canvas.svg()


def parts_svg(name: str, parts: Mapping[str, TimeParts]) -> str:
    """Draw where the mean time of an answer went, a bar for each of at least one scenario."""
    titles = {
        "client and network": "client_ms",
        "queue at the node": "queue_ms",
        "devices": "devices_ms",
        "slowest device alone": "slowest_ms",
        "fusion": "fuse_ms",
    }
    with open_canvas(name, height_in=0.55 + 0.42 * len(parts)) as canvas:
        axes = canvas.axes
        left_ms = np.zeros(len(parts))
        for (title, field), colour in zip(titles.items(), _PART_COLOURS, strict=True):
            width_ms = np.array([getattr(part, field) for part in parts.values()])
            axes.barh(range(len(parts)), width_ms, 0.6, left_ms, color=colour, label=title)
            left_ms += width_ms
        axes.set_yticks(range(len(parts)), list(parts))
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.set_xlabel("milliseconds, mean")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False, fontsize=9)
        return canvas.svg()


@contextmanager
def open_canvas(name: str, height_in: float, rows: int = 1) -> Iterator[Canvas]:
    """Draw in the block by rules of style that hold in it alone."""
    from matplotlib import style

    # A user's matplotlibrc changes nothing. Names are no formulas; text is drawn by the browser.
    rules = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    with style.context(["default", rules]):
        yield Canvas(name, height_in, rows)


class Canvas:
    """A figure of axes below each other, which share the horizontal one, as SVG text for a page.

    It uses none of matplotlib's global state. The same data gives the same bytes, with identifiers unique in the page.
    """

    def __init__(self, name: str, height_in: float, rows: int) -> None:
        """Open a figure; use :func:`open_canvas`, whose rules of style it needs."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._name = name
        self.figure: Figure = Figure(figsize=(_WIDTH_IN, height_in))
        FigureCanvasSVG(self.figure)
        self.rows: list[Axes] = list(self.figure.subplots(rows, squeeze=False, sharex=True)[:, 0])
        for axes in self.rows:
            axes.spines[["top", "right"]].set_visible(False)
        self.axes = self.rows[0]

    def svg(self) -> str:
        """Give the picture without prolog and metadata, scaled by its box, with identifiers of its own."""
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(text, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.05)
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r'(?<=<svg) ([^>]*?)width="[^"]*" height="[^"]*"', r' role="img" \1', svg, count=1)
        svg = re.sub(r'\bid="', f'id="{self._name}-', svg)
        return re.sub(r'(href="#|url\(#)', rf"\g<1>{self._name}-", svg)


def _bar(axes: Axes, place: float, figure: Estimate | None, scale: float, step: float, colour: str) -> None:
    """Draw one bar with its interval and its figure; nothing where there is none."""
    if figure is None:
        return
    mean, end = figure.mean * scale, figure.mean * scale
    axes.barh(place, mean, 0.36, color=colour)
    if figure.low_95 is not None and figure.high_95 is not None:
        error = [[mean - figure.low_95 * scale], [figure.high_95 * scale - mean]]
        axes.errorbar(mean, place, xerr=error, color="#222222", capsize=3, linewidth=1.2)
        end = figure.high_95 * scale
    axes.annotate(
        joules(mean, step), (max(end, 0.0), place), (5, 0), textcoords="offset points", va="center", fontsize=9
    )


def _shade(axes: Axes, device: str, phases: Sequence[Phase], axis: TimeAxis) -> None:
    """Shade the phases, and name each scenario above its first one."""
    named: set[str] = set()
    for phase in phases:
        start_s, end_s = (axis.device_s(device, at_ns) for at_ns in phase.span_ns(device))
        if phase.kind != SETTLE:
            axes.axvspan(start_s, end_s, facecolor=PHASE_COLOURS[phase.kind], edgecolor="white", linewidth=1.0)
        if any(events.total for events in over_current([phase], device).values()):
            axes.axvspan(start_s, end_s, ymin=_EDGE, facecolor=OVER_CURRENT_COLOUR, edgecolor="white", linewidth=1.0)
        if phase.scenario not in named:
            named.add(phase.scenario)
            spot = axes.get_xaxis_transform()
            axes.text(start_s, 1.02, phase.scenario, transform=spot, fontsize=9, ha="left", va="bottom")


def _log_time(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with 0.5, 2 and 10 where matplotlib writes powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
