"""``profile calibrate``: fits a board's total to an external meter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devit_contract.service import terminal


def calibrate(
    meter: Annotated[
        Path, typer.Option(metavar="FILE.csv", help="The meter's log: columns time_s (any clock) and power_w.")
    ],
    run: Annotated[Path, typer.Option(metavar="RUNDIR", help="Run with idle and loaded phases, recorded meanwhile.")],
    device: Annotated[str, typer.Option(metavar="NAME", help="Device of the run that the meter was on.")],
    meter_name: Annotated[
        str, typer.Option(metavar="TEXT", help='Name of the meter and where it is connected, e.g. "WT310, DC input".')
    ],
    meter_error: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", min=0.0, help="The meter's own error at 95 %, in percent, if it is known."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write (default: NAME.json in ~/.config/devit/calibrations)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration as JSON on standard output.")] = False,
) -> None:
    """Fit gain and offset of a board's total to an external meter; later runs of the device are corrected by them.

    The clocks need not agree: both logs are aligned by the steps of the load in them.
    """
    from devit_contract.artefacts.files import write_json
    from devit_profiling.calibrate import fit as fitting
    from devit_profiling.record.calibration import calibration_path, default_folder

    found = fitting.calibrate(run, device, meter, meter_name, meter_error)
    path = out if out is not None else calibration_path(default_folder(), device)
    write_json(path, found)
    if as_json:
        terminal.print_json(found)
        return
    simulated = ", SIMULATED power" if found.is_simulated else ""
    rows = [
        ["gain", f"{found.gain:.4f} ±{found.gain_95:.4f}"],
        [f"watts at a reading of {found.centre_w:.2f} W", f"{found.watts(found.centre_w):.3f} ±{found.level_95_w:.3f}"],
        ["offset, W", f"{found.offset_w:+.3f}"],
        ["residual, W rms", f"{found.residual_w:.4f}"],
        ["holds for readings, W", f"{found.low_w:.2f} to {found.high_w:.2f}"],
        ["steady-state segments", f"{found.segments}"],
        ["meter's clock less the device's, s", f"{found.alignment.offset_s:+.3f}"],
        ["both logs cover, s", f"{found.alignment.overlap_s:.1f}"],
        ["of the board's changes explained", f"{found.alignment.explained:.2%}"],
    ]
    terminal.print_table(f"{device} against {found.meter}{simulated}", ["what", "figure (±: 95 %)"], rows, numbers=(1,))
    typer.echo(f"calibration: {path}")
    terminal.print_next("profile", "--devices", device)
