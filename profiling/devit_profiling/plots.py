"""The figures of a report as SVG text that can stand in a page beside others: power over time, latency.

Text stays text, identifiers are made unique, and the same data gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from devit_profiling.power import Power, rail_names
from devit_profiling.record import IDLE, IDLE_AFTER, SETTLE, WARM_UP, WINDOW, AnswerRow, Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def power_svg(name: str, power: Power, phases: Sequence[Phase]) -> str:
    """Draw a device's rails and total over the whole run, on its own clock.

    Args:
        name: Unique in the page; identifiers begin with it.
        power: The device's samples, at least one.
        phases: Their bands are shaded.
    """
    with _Canvas(name, height_in=3.0) as canvas:
        axes = canvas.axes
        zero_s = power.log.samples[0].monotonic_ns / 1e9
        end_s = max(power.log.samples[-1].monotonic_ns / 1e9 - zero_s, 1e-3)
        _shade(axes, power.device.name, phases, zero_s)
        for rail, colour in zip(rail_names(power.log), _RAIL_COLOURS * 4, strict=False):
            points = [
                (sample.monotonic_ns / 1e9 - zero_s, sample.sample.rails_mw[rail] / 1e3)
                for sample in power.log.samples
                if rail in sample.sample.rails_mw
            ]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.9, label=rail)
        if power.time_s.size:
            style: dict[str, Any] = {"color": "#111111", "linewidth": 1.4, "linestyle": (0, (4, 1.5)), "zorder": 3}
            axes.plot(power.time_s - zero_s, power.total_w, label="total", **style)
        axes.set_xlim(0.0, end_s)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xlabel("seconds since the first sample (the device's clock)")
        axes.set_ylabel("power, W (SIMULATED)" if power.is_simulated else "power, W")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, frameon=False, fontsize=9)
        return canvas.svg()


def latency_svg(name: str, rows: Mapping[str, Sequence[AnswerRow]]) -> str:
    """Draw the share of answers that took at most so long, a curve per scenario.

    Args:
        name: Unique in the page.
        rows: Scenario to its answers; failed ones are left out.
    """
    with _Canvas(name, height_in=2.8) as canvas:
        axes = canvas.axes
        for (scenario, answers), colour in zip(rows.items(), _CURVE_COLOURS * 8, strict=False):
            latency_ms = np.array([row.latency_ms for row in answers if row.is_answered])
            if latency_ms.size:
                share = np.linspace(0.0, 1.0, min(_CURVE_POINTS, latency_ms.size + 1))
                values_ms = np.quantile(latency_ms, share)
                axes.plot(values_ms, 100 * share, color=colour, linewidth=1.5, label=scenario)
        axes.set_xscale("log")
        _plain_ticks(axes)
        axes.set_ylim(0.0, 101.0)
        axes.set_xlabel("milliseconds from request to answer (logarithmic)")
        axes.set_ylabel("share of answers, %")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, frameon=False, fontsize=9)
        return canvas.svg()


PHASE_COLOURS = {IDLE: "#cfe3f7", IDLE_AFTER: "#cfe3f7", WARM_UP: "#fde9c4", WINDOW: "#d5efd3"}
"""Of the bands; the page's key takes them from here."""
_RAIL_COLOURS = ("#c44e52", "#4c72b0", "#dd8452", "#8172b3", "#64b5cd")
_CURVE_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")
_CURVE_POINTS = 401
_WIDTH_IN = 8.6


class _Canvas:
    """A figure of one pair of axes, drawn without any of matplotlib's global state."""

    def __init__(self, name: str, height_in: float) -> None:
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._name = name
        # Whoever has a matplotlibrc gets the same picture. Names are no formulas; text is drawn by the browser.
        rules = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
        self._rules = style.context(["default", rules])
        self._rules.__enter__()
        self._figure: Figure = Figure(figsize=(_WIDTH_IN, height_in))
        FigureCanvasSVG(self._figure)
        self.axes: Axes = self._figure.subplots()
        self.axes.spines[["top", "right"]].set_visible(False)

    def __enter__(self) -> _Canvas:
        return self

    def __exit__(self, *error: object) -> None:
        self._rules.__exit__(None, None, None)

    def svg(self) -> str:
        """Give the picture without prolog and metadata, scaled by its box, with identifiers of its own."""
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._figure.savefig(text, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.05)
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r'(?<=<svg) ([^>]*?)width="[^"]*" height="[^"]*"', r' role="img" \1', svg, count=1)
        svg = re.sub(r'\bid="', f'id="{self._name}-', svg)
        return re.sub(r'(href="#|url\(#)', rf"\g<1>{self._name}-", svg)


def _shade(axes: Axes, device: str, phases: Sequence[Phase], zero_s: float) -> None:
    """Shade the phases, and name each scenario above its first one."""
    named: set[str] = set()
    for phase in phases:
        start_s = phase.start.marks[device].monotonic_ns / 1e9 - zero_s
        end_s = phase.end.marks[device].monotonic_ns / 1e9 - zero_s
        if phase.kind != SETTLE:
            axes.axvspan(start_s, end_s, facecolor=PHASE_COLOURS[phase.kind], edgecolor="white", linewidth=1.0)
        if phase.scenario not in named:
            named.add(phase.scenario)
            spot = axes.get_xaxis_transform()
            axes.text(start_s, 1.02, phase.scenario, transform=spot, fontsize=9, ha="left", va="bottom")


def _plain_ticks(axes: Axes) -> None:
    """Write 0.5, 2 and 10 where logarithmic axes have powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="both", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
