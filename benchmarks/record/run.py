"""What recording costs the node, what a frame takes on disk, and how fast and how exactly a recording replays.

python -m benchmarks.record.run
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from benchmarks.common.machine import Watch, two_cores
from benchmarks.common.measure import arguments, tell
from benchmarks.common.rows import Results, Row, bootstrap, command, finish
from benchmarks.growth.cell import RunningCell, Shape, process_cpu_s, running
from benchmarks.network.bare import Children, receive
from benchmarks.network.bundles import light_head, write_null_bundle
from benchmarks.network.node import CLASSES

from devit_contract.artefacts.manifest import Bundle
from devit_contract.service.lifecycle import StopSignal
from devit_fusion.record.changes import Changes
from devit_fusion.record.file import Recording, Ring, segments
from devit_fusion.record.recorder import Recorder, record
from devit_fusion.record.records import FeatureCame, RequestCame
from devit_fusion.record.replay import Replay
from devit_fusion.record.stand_ins import WholeFusion
from devit_fusion.record.verdict import Limits, Tally

RATE_HZ, BLOCK_S = 200.0, 5.0
MOST_SHARE, MOST_MIB, LEAST_SPEED = 0.05, 10.0, 10.0
HOUR_FRAMES = 3600 * int(RATE_HZ)
ABOUT = "recording a node of four devices at 200 frames a second of 3 KiB images, and replaying it"
NODE, OFF, ON = "node CPU time of a frame", "not recorded", "recorded"


@dataclass(frozen=True)
class Block:
    """One side for a while."""

    us_per_frame: float
    own_mb: float
    recorder_us: float
    frames: int


def run(duration_s: float, frames: int) -> tuple[Row, ...]:
    """Measure all of it: ``duration_s`` for each side at the rate, then so many frames as fast as they go."""
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        socket, folder = Path(place) / "record.sock", Path(place) / "recorded"
        with running(Shape(), socket) as cell:
            off, on, more_mb = _alternate(cell, socket, Path(place) / "blocks", duration_s)
            tell("record: frames to replay")
            with _recording(socket, folder):
                cell.count(frames)
        tell("record: replaying\n")
        return (
            *_cost_rows(off, on, more_mb),
            *_size_rows(folder, Path(place) / "noise"),
            *_replay_rows(folder, frames),
        )


def _alternate(
    cell: RunningCell, socket: Path, folder: Path, duration_s: float
) -> tuple[list[Block], list[Block], float]:
    blocks = max(2, round(duration_s / BLOCK_S))
    off: list[Block] = []
    on: list[Block] = []
    before_mb = 0.0
    for number in range(-1, blocks):
        tell(f"record: {'warming up' if number < 0 else f'block {number + 1} of {blocks}'}")
        plain = cell.paced(duration_s / blocks, RATE_HZ)
        with _recording(socket, folder) as pid:
            before_s = process_cpu_s(pid)
            told = cell.paced(duration_s / blocks, RATE_HZ)
            recorder_us = (process_cpu_s(pid) - before_s) / told.frames * 1e6
        if number < 0:
            before_mb = plain.own_mb  # nothing has been recorded yet
        else:
            off.append(Block(plain.us_per_frame, plain.own_mb, 0.0, plain.frames))
            on.append(Block(told.us_per_frame, told.own_mb, recorder_us, told.frames))
    return off, on, max(block.own_mb for block in on) - before_mb


class _recording:
    """Record in a process of its own, as devit record does, beside devices and client."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self._socket, self._folder, self._children = socket, folder, Children()

    def __enter__(self) -> int:
        self._children.__enter__()
        self._parent = self._children.start(_record, self._socket, self._folder, two_cores()[1])
        self._pid = receive(self._parent, int)
        return self._pid

    def __exit__(self, *_: object) -> None:
        self._parent.send("end")
        lost = receive(self._parent, int)
        self._children.__exit__(None, None, None)
        if lost:
            raise SystemExit(f"the recorder was too slow for {lost} records: is another load heavy?")


def _record(parent: Connection, socket: Path, folder: Path, core: int) -> None:
    os.sched_setaffinity(0, {core})
    StopSignal()
    with Recorder(socket) as recorder:
        parent.send(os.getpid())
        parent.send(record(recorder, Ring(folder, 10**12), "whole", parent.poll).lost)


def _cost_rows(off: list[Block], on: list[Block], more_mb: float) -> list[Row]:
    samples = sum(block.frames for block in off)
    plain, told = (np.asarray([block.us_per_frame for block in side]) for side in (off, on))
    ratio = float(np.median(told) / np.median(plain))
    more_mib = more_mb * 1e6 / 2**20
    return [
        _row(NODE, OFF, "us", plain, samples),
        _row(NODE, ON, "us", told, samples, ratio=ratio, against=OFF, bound=1 + MOST_SHARE),
        _one("node memory that recording takes", "devit", "MiB", more_mib, f"<= {MOST_MIB:g}", more_mib <= MOST_MIB),
        _row("recorder CPU time of a frame", "devit", "us", np.asarray([block.recorder_us for block in on]), samples),
    ]


def _size_rows(folder: Path, place: Path) -> list[Row]:
    """Write the recording again with images and features of noise: nothing in a frame is like another one's."""
    chance, ring, frames = np.random.default_rng(1), Ring(place, 10**12), 0
    for each in Recording(folder):
        if isinstance(each, RequestCame):
            each = msgspec.structs.replace(each, image=chance.bytes(len(each.image)))
            frames += 1
        elif isinstance(each, FeatureCame):
            noise = chance.normal(size=len(each.feature) // 4).astype(np.float32)
            each = msgspec.structs.replace(each, feature=noise.tobytes())
        ring.add(each)
    ring.close()
    bytes_per_frame = sum(path.stat().st_size for path in segments(place)) / frames
    hour_gb = bytes_per_frame * HOUR_FRAMES / 1e9
    return [
        _one("size of a frame of noise on disk", "devit", "bytes", bytes_per_frame, samples=frames),
        _one("size of an hour at 200 frames/s of noise", "devit", "GB", hour_gb, samples=frames),
    ]


def _replay_rows(folder: Path, frames: int) -> list[Row]:
    shape = Shape()
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        bundle = Path(place) / "bundle"
        write_null_bundle(bundle, (shape.dim,) * shape.devices, CLASSES, (shape.side, shape.side, 3))
        head = light_head([shape.dim] * shape.devices, CLASSES)
        recording = Recording(folder)
        again = Replay(Bundle(bundle).manifest, lambda: WholeFusion(head), None, Changes())
        for pair in again.run(recording):
            tally.add(pair)
    found = tally.compare(again.counts, recording.damage, Limits())
    # A recording of a moment may begin after most of it, as it begins where no frame is under way.
    frames, differ = found.compared, found.compared - found.equal
    speed = frames / found.took_s / RATE_HZ
    text = f"replay of {frames:,} frames"
    return [
        _one(f"{text}: speed", "devit", "x real time", speed, f">= {LEAST_SPEED:g}", speed >= LEAST_SPEED, frames),
        _one(f"{text}: answers that differ in a byte", "devit", "answers", differ, "<= 0", differ == 0, frames),
    ]


def _row(
    figure: str,
    side: str,
    unit: str,
    values: npt.NDArray[np.float64],
    samples: int,
    *,
    ratio: float | None = None,
    against: str = "",
    bound: float = 0.0,
) -> Row:
    interval = bootstrap([value[None] for value in values], lambda found: float(np.median(found)))
    return Row(
        figure=figure,
        side=side,
        unit=unit,
        p50=round(float(np.median(values)), 2),
        p50_interval=interval,
        samples=samples,
        ratio=ratio,
        against=against,
        wanted=f"<= {bound:g} x" if bound else "",
        holds=ratio <= bound if ratio is not None and bound else None,
    )


def _one(
    figure: str,
    side: str,
    unit: str,
    value: float,
    wanted: str = "",
    holds: bool | None = None,
    samples: int = 1,
) -> Row:
    return Row(figure=figure, side=side, unit=unit, p50=round(value, 3), samples=samples, wanted=wanted, holds=holds)


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 100.0, "how long each side is measured")
    parser.add_argument("--frames", type=int, default=10_000, help="frames to replay")
    chosen = parser.parse_args(argv)
    watch = Watch()
    rows = run(chosen.duration, chosen.frames)
    settings: dict[str, str | float] = {"devices": 4, "image bytes": 3072, "rate, 1/s": RATE_HZ, "CURVE": "all links"}
    results = Results(
        benchmark="record",
        about=ABOUT,
        command=command(),
        settings=settings,
        versions={},
        machine=watch.machine(),
        rows=rows,
    )
    finish(results, chosen)


if __name__ == "__main__":
    main()
