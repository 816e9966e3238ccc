"""``devit bench-device``: measures a model on this device, for ``devit plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devit_contract.extras import require
from devit_contract.service import terminal
from devit_contract.service.application_cli import Application

app = Application()
Name = Annotated[str, typer.Option(metavar="NAME", help="This device's name in fleet.toml.")]
Duration = Annotated[float, typer.Option("--duration", metavar="S", min=0.1, help="Seconds of inferences.")]
Engine = Annotated[
    str,
    typer.Option(metavar="ENGINE", help="built, or for trials: built:MS (the built one), null, paced:MS or busy:MS."),
]
EngineStore = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Engine store (default: ~/.cache/devit/engines).")
]
Board = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which board this is, e.g. orin-nano (default: by its device tree).")
]
Calibrations = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder with calibrations of sensors (default: ~/.config/devit/calibrations)."),
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Profile to write (default: profiles/NAME.json).")]


@app.command()
def bench_device(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder whose engine was built here.")],
    name: Name,
    submodel: Annotated[int, typer.Option(metavar="N", min=0, help="Which submodel runs.")] = 0,
    baseline: Annotated[bool, typer.Option("--baseline", help="Run the baseline model instead.")] = False,
    duration_s: Duration = 20.0,
    no_power: Annotated[bool, typer.Option("--no-power", help="Measure milliseconds alone.")] = False,
    threads: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="CPU threads of ONNX Runtime.")] = 1,
    engine: Engine = "built",
    store: EngineStore = None,
    board: Board = None,
    calibrations: Calibrations = None,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Measure one model of a bundle on this device, for devit plan: how long an inference takes, and its joules.

    It takes the duration and 20 s more where there is a power sensor.
    """
    require("profile")
    from msgspec import structs

    from devit_contract.artefacts.files import make_folder, write_json
    from devit_contract.artefacts.keys import check_name
    from devit_contract.artefacts.manifest import Bundle
    from devit_profiling.bench.bench import BENCH, without_power
    from devit_profiling.bench.bench import bench_device as measure
    from devit_profiling.record.calibration import default_folder
    from devit_profiling.sensor.boards import board_of_key

    check_name(name)
    plan = structs.replace(BENCH, duration_s=duration_s / BENCH.windows)
    path = out or Path("profiles") / f"{name}{'-baseline' if baseline else ''}.json"
    make_folder(path.parent)
    with terminal.on_interrupt("nothing is kept"), terminal.progress_bar(quiet=as_json) as progress:
        profile = measure(
            name,
            Bundle(bundle),
            "baseline" if baseline else submodel,
            without_power(plan) if no_power else plan,
            progress,
            store=store,
            threads=threads,
            engine=engine,
            board_choice=board_of_key(board).key if board is not None else "auto",
            calibrations=calibrations or default_folder(),
        )
    write_json(path, profile)
    if as_json:
        terminal.print_json(profile)
        return
    joules = f"{profile.above_idle_j:.4f} J above {profile.idle_w:.2f} W idle" if profile.idle_w is not None else ""
    what = f"{profile.p50_ms:.2f} ms p50, {profile.p99_ms:.2f} ms p99 of {profile.inferences} inferences"
    simulated = " (SIMULATED power)" if profile.is_simulated else ""
    typer.echo(f"{name}, {profile.engine}: {what}; {joules or f'no joules: {profile.not_measured}'}{simulated}")
    typer.echo(f"profile: {path}")
