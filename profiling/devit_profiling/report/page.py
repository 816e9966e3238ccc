"""The page ``report.html``: one file that opens offline, with its figures inside."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from devit_profiling.figures.analysis import Report
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.figures.power import power_of
from devit_profiling.record.clocks import TimeAxis
from devit_profiling.record.record import Recording
from devit_profiling.report.text import (
    AT_REST,
    NOT_MEASURED,
    PAPER,
    SUMMARY_HEADER,
    against_undivided_text,
    calibration_notes,
    doubts,
    how_cut_short,
    interval,
    interval_parts,
    joules,
    legend,
    load_text,
    number,
    pace_text,
    summary_rows,
)
from devit_profiling.report.thermal_text import HEAT_HEADER, heat_rows, heat_text

if TYPE_CHECKING:
    from markupsafe import Markup


def render_html(report: Report, recording: Recording) -> str:
    """Draw the page; the same report and recording give the same text."""
    import jinja2

    from devit_profiling.report.plots import PHASE_COLOURS

    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("devit_profiling.report").joinpath("report.html.j2").read_text("utf-8"))
    return page.render(
        report=report,
        summary_header=SUMMARY_HEADER,
        summary=summary_rows(report),
        cut_short=how_cut_short(report),
        load=load_text(report),
        legend=legend(report),
        heat_header=HEAT_HEADER,
        heat=heat_rows(report),
        heat_text=heat_text(report),
        at_rest=AT_REST,
        pace_text=pace_text,
        against_undivided=against_undivided_text(report),
        paper=PAPER,
        doubts=list(doubts(report)),
        calibrations=list(calibration_notes(report)),
        power_plots=_power_plots(recording),
        energy_plots=_energy_plots(report),
        latency_plot=_latency_plot(recording),
        arrival_plots=_arrival_plots(recording),
        parts_plot=_parts_plot(report),
        colours=PHASE_COLOURS,
        number=number,
        joules=joules,
        interval=interval,
        interval_parts=interval_parts,
        not_measured=NOT_MEASURED,
    )


def _power_plots(recording: Recording) -> dict[str, Markup]:
    """By device."""
    from markupsafe import Markup

    from devit_profiling.report.plots import power_svg

    plots = {}
    axis = TimeAxis.of(recording)
    for place, device in enumerate(recording.run.machines):
        power = power_of(recording, device)
        if power.log.samples:
            plots[device.name] = Markup(power_svg(f"power{place}", power, recording.run.phases, axis))
    return plots


def _energy_plots(report: Report) -> dict[str, Markup]:
    """By scope: bars of different scopes must not stand beside each other."""
    from markupsafe import Markup

    from devit_profiling.report.plots import energy_svg

    scopes: dict[str, list[tuple[str, DeviceEnergy]]] = {}
    for scenario in report.scenarios:
        for energy in scenario.energies:
            if energy.total_j_per_inference is not None:
                title = scenario.name if scenario.cell is None else f"{energy.device} {scenario.name}"
                scopes.setdefault(energy.scope, []).append((title, energy))
    return {
        scope: Markup(energy_svg(f"energy{place}", energies)) for place, (scope, energies) in enumerate(scopes.items())
    }


def _latency_plot(recording: Recording) -> Markup | None:
    from markupsafe import Markup

    from devit_profiling.report.plots import latency_svg

    rows = {
        scenario.name: [row for row in recording.answers if row.scenario == scenario.name and row.window > 0]
        for scenario in recording.run.scenarios
        if not scenario.is_undivided
    }
    if not any(row.is_answered for answers in rows.values() for row in answers):
        return None
    return Markup(latency_svg("latency", rows))


def _arrival_plots(recording: Recording) -> dict[str, Markup]:
    """By scenario: a histogram of each device's features."""
    from markupsafe import Markup

    from devit_profiling.report.plots import histogram_svg

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
            plots[scenario.name] = Markup(histogram_svg(f"arrival{place}", arrays))
    return plots


def _parts_plot(report: Report) -> Markup | None:
    from markupsafe import Markup

    from devit_profiling.report.plots import parts_svg

    parts = {
        scenario.name: scenario.answers.parts for scenario in report.scenarios if scenario.answers.parts is not None
    }
    return Markup(parts_svg("parts", parts)) if parts else None
