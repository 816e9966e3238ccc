"""The page ``report.html``: one file that opens offline, with its figures inside."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from devit_profiling.figures.analysis import Report
from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.record.record import Recording
from devit_profiling.report import number_format, summary, thermal
from devit_profiling.report.plots import (
    OVER_CURRENT_COLOUR,
    PHASE_COLOURS,
    energy_svg,
    histogram_svg,
    latency_svg,
    parts_svg,
    power_svg,
)
from devit_profiling.report.warning_list import AT_REST, cut_short_text, warnings


def render_html(report: Report, evidence: Evidence) -> str:
    """Draw the page; the same evidence gives the same text."""
    import jinja2

    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("devit_profiling.report").joinpath("report.html.j2").read_text("utf-8"))
    return page.render(
        report=report,
        summary=summary,
        thermal=thermal,
        text=number_format,
        cut_short=cut_short_text(report),
        at_rest=AT_REST,
        warnings=list(warnings(report)),
        power_plots=_power_plots(evidence),
        energy_plots=_energy_plots(report),
        latency_plot=_latency_plot(evidence.recording),
        arrival_plots=_arrival_plots(evidence.recording),
        parts_plot=_parts_plot(report),
        colours=PHASE_COLOURS | {"over-current": OVER_CURRENT_COLOUR},
    )


def _power_plots(evidence: Evidence) -> dict[str, str]:
    """Draw the power of every sampled device; by its name."""
    return {
        power.device.name: power_svg(f"power{place}", power, evidence.run.phases, evidence.axis)
        for place, power in enumerate(evidence.powers)
        if power.log.samples
    }


def _energy_plots(report: Report) -> dict[str, str]:
    """Draw the energies of each scope; bars of different scopes never share a figure."""
    scopes: dict[str, list[tuple[str, DeviceEnergy]]] = {}
    for scenario in report.scenarios:
        for energy in scenario.energies:
            if energy.total_j_per_inference is not None:
                title = scenario.name if scenario.cell is None else f"{energy.device} {scenario.name}"
                scopes.setdefault(energy.scope, []).append((title, energy))
    return {scope: energy_svg(f"energy{place}", energies) for place, (scope, energies) in enumerate(scopes.items())}


def _latency_plot(recording: Recording) -> str | None:
    rows = {
        scenario.name: [row for row in recording.answers if row.scenario == scenario.name and row.window > 0]
        for scenario in recording.run.scenarios
        if not scenario.is_baseline
    }
    if not any(row.is_answered for answers in rows.values() for row in answers):
        return None
    return latency_svg("latency", rows)


def _arrival_plots(recording: Recording) -> dict[str, str]:
    """Draw a histogram of each device's arrival times; by scenario."""
    names = recording.run.names_by_submodel()
    plots = {}
    for place, scenario in enumerate(recording.run.scenarios):
        times_ms: dict[str, list[float]] = {}
        for row in recording.answers:
            if row.scenario == scenario.name and row.window > 0:
                for timing in row.devices:
                    times_ms.setdefault(names[timing.device], []).append(timing.arrival_us / 1e3)
        if times_ms:
            arrays = {name: np.array(times_ms[name], np.float64) for name in sorted(times_ms)}
            plots[scenario.name] = histogram_svg(f"arrival{place}", arrays)
    return plots


def _parts_plot(report: Report) -> str | None:
    parts = {
        scenario.name: scenario.answers.parts for scenario in report.scenarios if scenario.answers.parts is not None
    }
    return parts_svg("parts", parts) if parts else None
