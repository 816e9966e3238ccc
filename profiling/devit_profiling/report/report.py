"""Writes the report of a run: ``report.json`` and tables for programs, ``report.html`` and a trace for people.

========================= ==========================================================================
file                      content
========================= ==========================================================================
``report.json``           all figures: :class:`~devit_profiling.figures.analysis.Report`
``report.html``           the same for people, one file that opens offline
``power.csv``             every reading of every rail, see :mod:`~devit_profiling.report.tables`
``windows.csv``           a row per device, scenario and window
``trace.json``            the run for Perfetto, see :mod:`~devit_profiling.report.trace_events`
========================= ==========================================================================

The same raw files give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from devit_contract.artefacts.files import write_bytes, write_json
from devit_contract.errors import InputError
from devit_profiling.figures.analysis import Report, analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.report.page import render_html
from devit_profiling.report.tables import POWER_FILE, WINDOWS_FILE, power_csv, windows_csv
from devit_profiling.report.trace_events import TRACE_FILE, trace_bytes, trace_of

JSON_FILE = "report.json"
HTML_FILE = "report.html"
OUTPUTS = (JSON_FILE, HTML_FILE, POWER_FILE, WINDOWS_FILE, TRACE_FILE)
"""All that is made from the raw files."""


def write_report(folder: Path) -> Report:
    """Make the report of a run from its raw files, and write it beside them with its tables and its trace.

    Raises:
        InputError: A raw file is missing, or the folder cannot be written.
        ManifestError: A raw file breaks its format.
    """
    evidence = Evidence.read(folder)
    report = analyse(evidence)
    html = render_html(report, evidence)
    try:
        write_json(folder / JSON_FILE, report)
        write_bytes(folder / HTML_FILE, html.encode())
        write_bytes(folder / POWER_FILE, power_csv(evidence))
        write_bytes(folder / WINDOWS_FILE, windows_csv(report, evidence))
        write_bytes(folder / TRACE_FILE, trace_bytes(trace_of(evidence)))
    except InputError as err:
        raise InputError(f"{err}: the raw files are kept: make room, and run profile report {folder}") from err
    return report
