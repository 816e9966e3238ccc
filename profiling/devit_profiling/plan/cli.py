"""``devit plan``: picks the mode of a fleet that keeps a goal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.extras import require
from devit_contract.service import terminal
from devit_contract.service.application_cli import Application

if TYPE_CHECKING:
    from devit_contract.artefacts.calibration import Calibration
    from devit_contract.artefacts.manifest import Bundle
    from devit_profiling.plan.choice import Choice
    from devit_profiling.plan.figures import Bench, Figures
    from devit_profiling.plan.goal import Goal

CALIBRATION_FILE = "calibration.safetensors"
PROFILES = "profiles"
"""Folder beside the fleet file."""
app = Application()
Goals = Annotated[
    str,
    typer.Option(
        "--goal",
        metavar="KEY=VALUE,...",
        help="deadline-ms (99 % of the answers; default: the fleet's), rate (answers per second; default: 1), "
        "survive (devices that may be lost; default: 0), watts (of all devices and extras), "
        "accuracy (least, in % of the validation images).",
    ),
]
Profiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--profile",
        metavar="PATH",
        help="Profile of a device, by devit bench-device, or a run of profile; may be repeated "
        f"(default: {PROFILES}/*.json beside the fleet file).",
    ),
]
CalibrationFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"Calibration (default: {CALIBRATION_FILE} of the bundle).")
]
Flips = Annotated[
    float, typer.Option(metavar="SHARE", min=0.0, max=0.1, help="Promise of certain: answers that may differ.")
]
Confidence = Annotated[float, typer.Option(metavar="SHARE", min=0.5, max=0.9999, help="How sure that promise is.")]
Overhead = Annotated[
    float | None,
    typer.Option(
        metavar="MS",
        min=0.0,
        help="What an answer takes beyond the inference "
        "(default: as a run of profile measured; else 0.5 ms and the image at 1 Gbit/s).",
    ),
]
Paced = Annotated[
    bool, typer.Option("--paced", help="Requests come at equal distances, as from a camera (default: at random).")
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a copy of the fleet file with the picked mode.")]
RecipeFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --sizes: the recipe that the submodels were made by.")
]
SizesFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a recipe with sizes and classes by what each device does in time."),
]


@app.command()
def plan(
    goal: Goals,
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="Bundle of the cell.")],
    fleet: Annotated[Path, typer.Option(metavar="PATH", help="Fleet file.")] = Path("fleet.toml"),
    profile: Profiles = None,
    calibration: CalibrationFile = None,
    flips: Flips = 0.01,
    confidence: Confidence = 0.95,
    overhead_ms: Overhead = None,
    paced: Paced = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the simulation.")] = 1,
    out: Out = None,
    recipe: RecipeFile = None,
    sizes: SizesFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Pick the mode of a fleet that keeps a goal, by simulation on measured profiles, and say why.

    Simulated are queues at the node and at the devices; lost frames, decoding
    of pictures and other clients are not.
    Accuracies are those of the bundle's validation images.
    Without an accuracy in the goal the most accurate mode is picked, with one
    that of the least joules (or device time) an answer.
    Ends with exit code 1 if no mode keeps the goal, and names the nearest one.
    """
    require("profile")
    if (recipe is None) != (sizes is None):
        raise typer.BadParameter("give --sizes and --recipe together")
    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.artefacts.manifest import Bundle
    from devit_profiling.plan.cell import cell_of
    from devit_profiling.plan.choice import choose
    from devit_profiling.plan.device_profile import read_profiles
    from devit_profiling.plan.figures import Bench, Promise
    from devit_profiling.plan.goal import parse_goal
    from devit_profiling.plan.written import write_fleet

    whole, opened = load_fleet(fleet), Bundle(bundle)
    wanted = parse_goal(goal, whole.serving.deadline_ms)
    paths = profile or sorted((fleet.parent / PROFILES).glob("*.json"))
    profiles = [each for path in paths for each in read_profiles(path)]
    cell = cell_of(whole, opened.manifest, _calibration(opened, calibration), profiles, overhead_ms)
    promise = Promise(flips, confidence)
    bench = Bench(cell, promise, "paced" if paced else "poisson", seed)
    with terminal.progress_bar(quiet=as_json) as progress:
        found = choose(bench, wanted, progress)
    told = _sizes(bench, found, wanted, recipe, sizes) if recipe is not None and sizes is not None else []
    if out is not None:
        write_fleet(fleet, out, found.picked, promise, wanted.deadline_ms)
    if as_json:
        terminal.print_json(found)
        return
    _show(found, told)
    if cell.trial is None:
        typer.echo(f"certain: left out, as {bundle} has no calibration for plans: make it again with devit export")
    if out is not None:
        terminal.print_next("fusion-node", "--bundle", bundle, "--fleet", out)
    if sizes is not None:
        terminal.print_next("devit", "decompose", sizes)


def _calibration(bundle: Bundle, path: Path | None) -> Calibration | None:
    """Read the calibration that was named, or the bundle's if it has one."""
    from devit_contract.artefacts.calibration import Calibration

    devices = len(bundle.manifest.submodels)
    if path is not None:
        return Calibration.load(path, devices=devices)
    listed = next((file for file in bundle.manifest.files if file.name == CALIBRATION_FILE), None)
    if listed is None:
        return None
    return Calibration.load(bundle.folder / listed.name, devices=devices, sha256=listed.sha256)


def _sizes(bench: Bench, found: Choice, goal: Goal, recipe: Path, out: Path) -> list[str]:
    """Write the recipe, and tell what is in it."""
    from devit_profiling.plan.modes import Mode
    from devit_profiling.plan.sizes import sizes_of, write_recipe

    picked, baseline = found.picked, bench.cell.manifest.baseline
    mode = Mode(picked.policy, picked.stages, picked.order, picked.early_release)
    time_ms, sizes = sizes_of(bench, mode, goal)
    write_recipe(out, recipe, sizes, baseline.macs if baseline is not None else None)
    parts = [f"{each.device} {each.macs / 1e6:.3g} M ({each.scale:.2g}x, {each.classes} classes)" for each in sizes]
    return [f"sizes: an inference may take {time_ms:.3g} ms; multiply-accumulates: {', '.join(parts)}"]


_SHORT = {"deadline-ms": "late", "rate": "rate", "watts": "watts", "accuracy": "acc."}
"""Keys of the goal in the table's last column."""


def _show(found: Choice, told: list[str]) -> None:
    import textwrap

    header = ["mode", "acc./1 lost %", "p50/p99 ms", "per s", "asked", "J", "misses"]
    rows = [_row(figures, is_picked=figures == found.picked) for figures in found.modes]
    terminal.print_table(f"goal: {found.goal}", header, rows, numbers=(1, 2, 3, 4, 5))
    lines = [f"picked: {found.picked.title}: {found.why}.", found.advice, *told]
    base = found.baseline
    if base is not None:
        lines.append(
            f"baseline model on {base.device}: accuracy {_percent(base.accuracy)} %, "
            f"p99 {_number(base.p99_ms, 1)} ms, {_number(base.j_per_answer, 3)} J an answer"
        )
    lines.append(f"time beyond the inference: {found.overhead_from}")
    for line in filter(None, lines):
        typer.echo(textwrap.fill(line, 80))


def _row(figures: Figures, *, is_picked: bool) -> list[str]:
    return [
        f"{'>' if is_picked else ' '}{figures.title.removeprefix('certain ')}",
        f"{_percent(figures.accuracy)}/{_percent(figures.accuracy_one_lost)}",
        f"{_number(figures.p50_ms, 1)}/{_number(figures.p99_ms, 0)}",
        _number(figures.answers_per_s, 1),
        _number(figures.devices_asked, 2),
        _number(figures.j_per_answer, 3),
        " ".join(_SHORT[key] for key in figures.misses),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
