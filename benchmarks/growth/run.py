"""How a node's cost grows with devices, image size, feature width and rate, and what that means for many cells.

python -m benchmarks.growth.run
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import simpy
from benchmarks.common.machine import Watch
from benchmarks.common.measure import arguments, tell
from benchmarks.common.rows import Results, Row, bootstrap, command, finish
from benchmarks.growth.cell import Cost, Shape, running
from benchmarks.growth.fit import Line, fit
from benchmarks.growth.model import Cell, fleet, simulate

DEVICES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
SIDES = (32, 64, 128, 224)
DIMS = (48, 192, 768, 1536)
RATES_HZ = (10.0, 50.0, 200.0)
BLOCKS = 5
LEAST_R2 = 0.99
FLEETS = (10, 1_000, 100_000)
IN_CELL = 16
ENGINE_MS, CELL_HZ = 20.0, 30.0
SIMULATED_CELLS, SIMULATED_FRAMES = 20, 600
ABOUT = "node CPU time of a frame, as devices, image, feature and rate grow; many cells by simulation from it"


def run(duration_s: float, most_devices: int) -> tuple[Row, ...]:
    """Measure all of it; ``duration_s`` is for each point."""
    shapes = [Shape(devices=count) for count in DEVICES if count <= most_devices]
    costs = {shape: _measure(shape, duration_s) for shape in shapes}
    rows = [_row("node CPU time of a frame", f"{shape.devices} devices", "us", costs[shape]) for shape in shapes]
    by_devices = fit([shape.devices for shape in shapes], [_us(costs[shape]) for shape in shapes])
    rows += _line_rows("node CPU time of a frame against devices", "device", by_devices, is_bound=len(shapes) > 3)
    rows += _full_rows(by_devices, most_devices)
    rest = fit([shape.devices for shape in shapes], [costs[shape][0].rest_share * 1e3 for shape in shapes])
    rows.append(_figure("node CPU time at rest, for each device", "devit", "ms a second", rest.slope))
    memory_mb = [costs[shape][-1].own_mb for shape in shapes]
    memory = fit([shape.devices for shape in shapes], memory_mb)
    rows.append(_figure("node memory of its own, for each device", "devit", "MB", memory.slope))
    rows.append(_figure("node memory of its own, without devices", "devit", "MB", memory.start))
    for title, varied in (
        ("image of side, 4 devices", {f"{side} px": Shape(side=side) for side in SIDES}),
        ("feature of numbers, 4 devices", {f"{dim}": Shape(dim=dim) for dim in DIMS}),
    ):
        found = {name: costs.get(shape) or _measure(shape, duration_s) for name, shape in varied.items()}
        rows += [_row(f"node CPU time of a frame: {title}", name, "us", taken) for name, taken in found.items()]
        kilobytes = [_kilobytes(shape) for shape in varied.values()]
        line = fit(kilobytes, [_us(taken) for taken in found.values()])
        rows += _line_rows(f"node CPU time of a frame against {title.split()[0]} size", "kB", line, is_bound=False)
    for rate_hz in RATES_HZ:
        taken = _measure(Shape(), duration_s, rate_hz)
        rows.append(_row("node CPU time of a frame: rate, 4 devices", f"{rate_hz:g} a second", "us", taken))
    tell("growth: many cells are simulated")
    rows += [row for devices in FLEETS for row in _fleet_rows(devices, by_devices, rest)]
    tell("growth: done\n")
    return tuple(rows)


def _measure(shape: Shape, duration_s: float, rate_hz: float | None = None) -> list[Cost]:
    tell(f"growth: {shape.devices} devices, {shape.side} px, {shape.dim} numbers, rate {rate_hz or 'as it comes'}")
    with running(shape) as cell:
        block_s = duration_s / BLOCKS
        if rate_hz is None:
            return [cell.saturated(block_s) for _ in range(BLOCKS)]
        return [cell.paced(block_s, rate_hz) for _ in range(BLOCKS)]


def _us(costs: Sequence[Cost]) -> float:
    return float(np.median([cost.us_per_frame for cost in costs]))


def _kilobytes(shape: Shape) -> float:
    """Of one image, or of all features of a frame, whichever is not the default."""
    default = Shape()
    changed = shape.side**2 * 3 if replace(shape, side=default.side) == default else shape.dim * 4 * shape.devices
    return changed / 1e3


def _row(figure: str, side: str, unit: str, costs: Sequence[Cost]) -> Row:
    blocks = [np.array([cost.us_per_frame]) for cost in costs]
    interval = bootstrap(blocks, lambda values: float(np.median(values)))
    frames = sum(cost.frames for cost in costs)
    return Row(figure=figure, side=side, unit=unit, p50=round(_us(costs), 2), p50_interval=interval, samples=frames)


def _figure(figure: str, side: str, unit: str, value: float, wanted: str = "", holds: bool | None = None) -> Row:
    return Row(figure=figure, side=side, unit=unit, p50=round(value, 4), samples=1, wanted=wanted, holds=holds)


def _line_rows(figure: str, per: str, line: Line, *, is_bound: bool) -> list[Row]:
    wanted = f">= {LEAST_R2:g}" if is_bound else ""
    return [
        _figure(f"{figure}: start of the line", "devit", "us", line.start),
        _figure(f"{figure}: slope", "devit", f"us a {per}", line.slope),
        _figure(f"{figure}: r^2", "devit", "", line.r2, wanted, line.r2 >= LEAST_R2 if is_bound else None),
    ]


def _full_rows(line: Line, most_devices: int) -> list[Row]:
    """Say where one core of the node is full: by the line, as a node's loop has one thread."""
    counts = [count for count in (4, IN_CELL, 64) if count <= most_devices]
    rows = [_figure("a node is full at", f"{count} devices", "frames/s", 1e6 / line.at(count)) for count in counts]
    devices = (1e6 / CELL_HZ - line.start) / line.slope
    return [*rows, _figure("a node is full at", f"{CELL_HZ:g} frames/s", "devices", devices)]


def _fleet_rows(devices: int, line: Line, rest: Line) -> list[Row]:
    """Simulate a sample of the cells; the busy cores count all."""
    sizes = fleet(devices, IN_CELL)
    cells = [Cell(size, line.at(size), ENGINE_MS) for size in sizes]
    chosen = itertools.islice(cells, 0, None, max(1, len(cells) // SIMULATED_CELLS))
    taken = [simulate(cell, CELL_HZ, SIMULATED_FRAMES, seed) for seed, cell in enumerate(chosen)]
    taken_ms = np.concatenate(taken)
    cores = sum(cell.node_us * CELL_HZ / 1e6 + rest.at(cell.devices) / 1e3 for cell in cells)
    title = f"simulated: {len(cells):,} cells, {CELL_HZ:g} frames/s each"
    side = f"{devices:,} devices"
    low, high = (float(np.percentile(taken_ms, share)) for share in (50, 99))
    answers = f"{title}: request to answer, engines of {ENGINE_MS:g} ms"
    return [
        Row(figure=answers, side=side, unit="ms", p50=round(low, 2), p99=round(high, 2), samples=len(taken_ms)),
        _figure(f"{title}: cores that nodes keep busy", side, "cores", cores),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 10.0, "how long each point is measured")
    parser.add_argument(
        "--devices", type=int, default=64, help="most devices of a cell, 2 to 64 (default: %(default)s)"
    )
    chosen = parser.parse_args(argv)
    watch = Watch()
    rows = run(chosen.duration, chosen.devices)
    results = Results(
        benchmark="growth",
        about=ABOUT,
        command=command(),
        settings={"seconds a point": chosen.duration, "devices": chosen.devices},
        versions={"simpy": simpy.__version__},
        machine=watch.machine(),
        rows=rows,
    )
    finish(results, chosen)


if __name__ == "__main__":
    main()
