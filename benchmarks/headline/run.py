"""The paper's headline, measured here: large models undivided, against four submodels on a device each.

python -m benchmarks.headline.run [--small]

Models have random weights and run in ONNX Runtime on the CPU, one thread a device. They are made at the first run,
which needs torch and timm, and kept in the user's cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Samples, alternate, arguments, p50, p99
from benchmarks.common.rows import Results, Row, bootstrap, finish
from benchmarks.headline.models import (
    DEVICES,
    FAMILIES,
    PUBLISHED,
    SINGLES,
    SMALL,
    Cell,
    Family,
    ModelFile,
    Single,
    cell,
    single,
    undivided,
)
from benchmarks.headline.sides import ALONE, RAW, TOGETHER, Sides

from devit_contract.errors import DevitError

ABOUT = "models undivided on one device, against four submodels on a device each; random weights"
OVER_MACS = 0.7
COMPARED = "DeDeiTs"
"""The family that models of one device are held against, as in the paper."""
CELLS = {
    ALONE: "each agent alone on a core",
    RAW: "each agent alone on a core, raw image",
    TOGETHER: "all at once on this machine's cores (contended)",
}


def results(chosen: argparse.Namespace, words: Sequence[str]) -> Results:
    """Measure each family that is chosen; ``words`` are the command line's.

    Raises:
        DevitError: A package is missing at the first run, or a cell does not start or answer.
    """
    size = SMALL if chosen.small else PUBLISHED
    families = [family for family in FAMILIES if family.name in chosen.family]
    # All are made before any is measured.
    made = [(family, cell(family, size), undivided(family, size)) for family in families]
    singles = [(each, single(each, size)) for each in SINGLES if COMPARED in chosen.family]
    watch, rows = Watch(), list[Row]()
    for family, four, whole in made:
        rows += measured(
            family, four, whole, singles if family.name == COMPARED else [], chosen.duration, counts=not chosen.small
        )
    return Results(
        benchmark="headline",
        about=ABOUT,
        command=" ".join(["python -m benchmarks.headline.run", *words]),
        settings={
            "models": "small stand-ins: no figure counts" if chosen.small else "as published",
            "threads of a device": 1,
            "image": "JPEG of 224 px, decoded by whoever runs a model, except in rows that say raw",
            CELLS[ALONE]: "one agent computes on a core, three sleep as long; node and client on another",
        },
        versions={"onnxruntime": version("onnxruntime")},
        machine=watch.machine(),
        rows=tuple(rows),
    )


def measured(
    family: Family,
    four: Cell,
    whole: ModelFile,
    singles: Sequence[tuple[Single, ModelFile]],
    duration_s: float,
    *,
    counts: bool,
) -> list[Row]:
    """Measure one family's cell in turns with its undivided model, and with models of one device.

    Nothing is wanted of it unless it ``counts``.
    """
    models = {family.undivided: whole} | {each.name: model for each, model in singles}
    with Sides(four) as sides:
        for name, model in models.items():
            sides.add(name, model)
        taken = alternate(family.name, list(sides.latencies.values()), duration_s)
        blocks = {
            name: [block / 1000 for block in side] for name, side in zip(sides.latencies, taken, strict=True)
        }  # ms
        memory_mb = {name: read() for name, read in sides.resident_mb.items()}
    ours = f"{DEVICES} x {family.submodel}"
    bounds = {each.name: each.wanted for each, _ in singles} | {family.undivided: family.wanted}
    bounds = bounds if counts else {}
    macs = {name: model.exported.macs for name, model in models.items()}
    rows = [_latency(f"{family.name}, {text}", ours, blocks[key]) for key, text in CELLS.items()]
    for name in models:
        rows.append(_latency(f"{family.name}, one device", name, blocks[name], blocks[ALONE], ours, bounds.get(name)))
    ratios = {key: _p50(blocks[family.undivided]) / _p50(blocks[key]) for key in CELLS}
    count = min(sum(map(len, blocks[name])) for name in (ALONE, family.undivided))
    for key, text in CELLS.items():
        over = ratios[key] / (macs[family.undivided] / four.macs)
        bound = OVER_MACS if key == ALONE and counts else None
        rows.append(_plain(f"{family.name}, {text}: latency ratio over MAC ratio", ours, "x", over, count, bound))
    rows.append(_plain(f"{family.name}, MACs of one device", ours, "G", four.macs / 1e9, 1))
    rows += [
        _against(f"{family.name}, MACs of one device", name, "G", macs[name] / 1e9, four.macs / 1e9, ours)
        for name in models
    ]
    rows.append(_plain(f"{family.name}, resident memory of one device", ours, "MB", memory_mb[ALONE], 1))
    rows += [
        _against(f"{family.name}, resident memory of one device", name, "MB", memory_mb[name], memory_mb[ALONE], ours)
        for name in models
    ]
    published = "published ImageNet-1K top-1, not measured here"
    return rows + [_plain(f"{published} ({each.source})", each.name, "%", each.top1, 1) for each, _ in singles]


def _p50(blocks: list[Samples]) -> float:
    return p50(np.concatenate(blocks))


def _latency(
    figure: str,
    side: str,
    blocks: list[Samples],
    ours: list[Samples] | None = None,
    against: str = "",
    bound: float | None = None,
) -> Row:
    """Give a side's latency; with ``ours``, how many times that of the cell it is."""
    samples = np.concatenate(blocks)
    ratio = None if ours is None else p50(samples) / _p50(ours)
    return Row(
        figure=f"{figure}, picture to answer",
        side=side,
        unit="ms",
        p50=p50(samples),
        p99=p99(samples),
        p50_interval=bootstrap(blocks, p50),
        p99_interval=bootstrap(blocks, p99),
        samples=len(samples),
        ratio=ratio,
        against=against,
        wanted=_wanted(bound),
        holds=_holds(ratio, bound),
    )


def _plain(figure: str, side: str, unit: str, value: float, samples: int, bound: float | None = None) -> Row:
    return Row(
        figure=figure,
        side=side,
        unit=unit,
        p50=value,
        samples=samples,
        wanted=_wanted(bound),
        holds=_holds(value, bound),
    )


def _against(figure: str, side: str, unit: str, value: float, ours: float, against: str) -> Row:
    return Row(figure=figure, side=side, unit=unit, p50=value, samples=1, ratio=value / ours, against=against)


def _wanted(bound: float | None) -> str:
    return "" if bound is None else f">= {bound:g} x"


def _holds(value: float | None, bound: float | None) -> bool | None:
    return None if value is None or bound is None else value >= bound


def main(given: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 30.0, "how long each side of each family is measured")
    parser.add_argument("--small", action="store_true", help="tiny stand-ins of the same architectures: does it run?")
    names = [family.name for family in FAMILIES]
    parser.add_argument("--family", nargs="+", choices=names, default=names, help="which cells to measure")
    words = sys.argv[1:] if given is None else given
    chosen = parser.parse_args(words)
    try:
        found = results(chosen, words)
    except DevitError as err:
        raise SystemExit(f"error: {err}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finish(found, chosen)


if __name__ == "__main__":
    main()
