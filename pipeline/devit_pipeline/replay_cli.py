"""The command ``devit replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.choices import Policy
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_table

if TYPE_CHECKING:
    from devit_fusion.record.verdict import Comparison

app = Application(no_args_is_help=True)
_EXIT_CODES = {"deploy": 0, "review": 3, "blocked": 4}


@app.command()
def replay(
    recording: Annotated[Path, typer.Argument(help="A file of devit record, or its folder.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to answer with; default: the one recorded with.")] = None,
    policy: Annotated[Policy | None, typer.Option(help="Which devices to ask; default: as recorded.")] = None,
    without: Annotated[str, typer.Option(metavar="NAME,...", help="Devices to do without, comma separated.")] = "",
    labels: Annotated[
        Path | None, typer.Option(help="CSV: request number or SHA-256 of the image, and class: for accuracies.")
    ] = None,
    max_flips: Annotated[float, typer.Option(min=0, max=1, help="Share of answers that may change class.")] = 0.01,
    max_failed: Annotated[float, typer.Option(min=0, max=1, help="By how much more may fail.")] = 0.001,
    max_loss: Annotated[float, typer.Option(min=0, max=1, help="How much the accuracy may fall.")] = 0.005,
    real_time: Annotated[bool, typer.Option("--real-time", help="As slowly as it was, rather than at once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer a recording again, and say whether what was changed may be deployed.

    Exit code 0: deploy; 3: review, as the recording does not show enough; 4: blocked, as a limit is broken.
    """
    from devit_contract.extras import require
    from devit_fusion.record.verdict import Limits
    from devit_pipeline.replay import replay as replay_all

    require("record")
    found = replay_all(
        recording,
        bundle=bundle,
        policy=policy,
        without=tuple(filter(None, without.split(","))),
        labels=labels,
        limits=Limits(max_flips, max_failed, max_loss),
        real_time=real_time,
    )
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
    else:
        _show(found)
    raise typer.Exit(_EXIT_CODES[found.verdict])


def _show(found: Comparison) -> None:
    was, now = found.was, found.now
    states = [state for state in ("full", "certain", "partial", "failed") if state in was.states or state in now.states]
    rows = [[state, *(f"{side.states.get(state, 0):,}" for side in (was, now))] for state in states]
    rows += [["asked, devices", *(f"{side.asked:.2f}" for side in (was, now))]]
    rows += [[f"{name}, ms", *(f"{getattr(side, field):.1f}" for side in (was, now))] for name, field in _TIMES]
    if was.accuracy is not None and now.accuracy is not None:
        rows.append([f"accuracy of {found.labelled:,}", f"{was.accuracy:.2%}", f"{now.accuracy:.2%}"])
    for miss in sorted(set(was.misses) | set(now.misses)):
        device, _, why = miss.partition(" ")
        rows.append([f"submodel {device}: {why}", *(f"{side.misses.get(miss, 0):,}" for side in (was, now))])
    print_table(f"{found.compared:,} answers", ("", "recorded", "replayed"), rows, numbers=(1, 2))
    for change, count in found.changes.items():
        typer.echo(f"{change}: {count:,}")
    typer.echo(f"{found.equal:,} answers are the same bytes, {found.flips:,} flip")
    typer.echo(f"{found.recorded_s:.0f} s in {found.took_s:.1f} s, {found.speed:.0f} x real time")
    typer.echo(f"verdict: {found.verdict}")
    for reason in found.reasons:
        typer.echo(f"  {reason}")


_TIMES = (("p50", "p50_ms"), ("p99", "p99_ms"))
