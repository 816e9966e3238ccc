"""Images of 224 pixels to four devices over links of 1 Gbit/s, and of 100 Mbit/s with 2 ms: raw, coded, own source.

python -m benchmarks.links.run
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Samples, alternate, arguments, asked, p50, p99, tell
from benchmarks.common.rows import Results, Row, bootstrap, finish
from benchmarks.links.accuracy import TEST_IMAGES, accuracy_rows
from benchmarks.links.shaper import FAR, NEAR, measured_mbit, why_not
from benchmarks.network.bundles import write_null_bundle
from PIL import Image
from tests.network.faults import redirect
from tests.network.namespaces import Namespace, shaped_pair
from tests.network.proxy import Proxy

from devit_contract.arrays import UInt8Array
from devit_contract.choices import ImageChoice
from devit_contract.wire.client import Client, Picture
from devit_contract.wire.codec import State
from devit_pipeline.local_cell import LocalCell, LocalDevice

DEVICES, DIM, CLASSES, SIDE, PACE_MS = 4, 192, 100, 224, 0.75
CODINGS: tuple[ImageChoice, ...] = ("raw", "jpeg", "lossless", "auto")
OWN = "own source"
WANTED = 0.5
"""Of the p50 of raw, by what the fleet does if nothing is set."""
PICTURES, SCALE = 8, 2
"""Cut-outs of the photograph, each twice as long and wide as an image."""
WARM_UP = 40
"""Requests before the measurement: ``auto`` has tried both ways by then."""
ABOUT = f"{DEVICES} agents of {PACE_MS:g} ms, one uplink of the node, one request under way: client to answer"


@dataclass(frozen=True)
class Line:
    """A link to measure over."""

    rate_mbit: float
    delay_ms: float = 0.0
    """Each way."""

    @property
    def name(self) -> str:
        """As in the figures."""
        rate = f"{self.rate_mbit / 1000:g} Gbit/s" if self.rate_mbit >= 1000 else f"{self.rate_mbit:g} Mbit/s"
        return f"{rate} and {2 * self.delay_ms:g} ms" if self.delay_ms else rate


LINES = (Line(1000.0), Line(100.0, 1.0))


def run(duration_s: float, lines: Sequence[Line], images: int, command: str) -> Results:
    """Measure all sides in turns, link by link, and what coding costs in answers."""
    watch, rows = Watch(), accuracy_rows(images)
    if problem := why_not():
        tell(f"links: no latency: {problem}\n")
    for line in () if problem else lines:
        rows += _over(line, duration_s)
    return Results(
        benchmark="links",
        about=ABOUT,
        command=command,
        settings={
            "image bytes": 3 * SIDE * SIDE,
            "pictures": "cut out of matplotlib's grace_hopper.jpg",
            "CURVE": "on",
        },
        versions={name: version(name) for name in ("pillow", "onnxruntime")},
        machine=watch.machine(),
        rows=tuple(rows),
    )


def photographs() -> list[UInt8Array]:
    """Cut and scale images out of a photograph that matplotlib ships, of 512 x 600 pixels."""
    from matplotlib.cbook import get_sample_data

    rng, side = np.random.default_rng(1), SCALE * SIDE
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as file:
        whole = file.convert("RGB")
    corners = rng.integers((whole.width - side, whole.height - side), size=(PICTURES, 2)).tolist()
    cuts = [whole.crop((x, y, x + side, y + side)) for x, y in corners]
    return [np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for cut in cuts]


@contextmanager
def shaped_cell(place: Path, choice: ImageChoice, line: Line, near: Namespace, far: Namespace) -> Iterator[LocalCell]:
    """Start node and client at the near end, agents at the far one; each agent has a source of its own too."""
    devices = [LocalDevice(f"device{index}", index, engine=f"paced:{PACE_MS:g}") for index in range(DEVICES)]
    settings = f'images = "{choice}"\n'
    described = LocalCell(place / "bundle", place / f"cell-{choice}", devices, deadline_ms=5000, settings=settings)
    with ExitStack() as stack:
        stack.enter_context(near.inside())
        cell = stack.enter_context(described)
        for name in ("node", *cell.devices):
            cell.kill(name)
        old = cell.fleet.node.endpoint
        endpoint = old.replace("127.0.0.1", NEAR)
        cell.fleet_path.write_text(cell.fleet_path.read_text().replace(old, endpoint))
        cell.start_node()
        with far.inside():
            if line.delay_ms:
                endpoint = stack.enter_context(Proxy(endpoint, delay_ms=line.delay_ms, jitter_ms=0.0)).endpoint
            for name in cell.devices:
                redirect(cell, name, endpoint)
                path = cell.folder / f"{name}.toml"
                path.write_text(path.read_text().replace('source = ""', f'source = "folder:{place / "pictures"}"'))
            cell.start_agents(list(cell.devices))
        yield cell


class _Side:
    """One way to get images to the devices."""

    def __init__(self, client: Client, pictures: Sequence[Picture]) -> None:
        """Ask often enough for ``auto`` to have tried both ways."""
        self._client, self._pictures = client, cycle(pictures)
        for _ in range(WARM_UP):
            self.ask()
        self._frames, self._sent_bytes = 0, self._devices_out()

    def ask(self) -> float:
        """Have one image answered, and give the time that took, coding included, in seconds."""
        picture, start_s = next(self._pictures), time.perf_counter()
        answer = self._client.classify(picture)
        if answer.state is not State.FULL:
            raise SystemExit(f"expected an answer of all devices, found {answer.state.name.lower()}: {answer.why}")
        return time.perf_counter() - start_s

    def measure(self, duration_s: float) -> Samples:
        """Ask for a while."""
        found = asked(self.ask, 0.0, duration_s)
        self._frames += len(found)
        return found

    def bytes_a_device(self) -> float:
        """Tell what a frame sent to one device since the warm-up."""
        return (self._devices_out() - self._sent_bytes) / max(1, self._frames) / DEVICES

    def _devices_out(self) -> int:
        return self._client.status().wire_bytes["devices_out"]


def _over(line: Line, duration_s: float) -> list[Row]:
    pictures, choices = photographs(), CODINGS
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devit-")))
        near, far = stack.enter_context(shaped_pair((f"{NEAR}/30", f"{FAR}/30"), line.rate_mbit))
        rate_mbit = measured_mbit(near, far)
        write_null_bundle(place / "bundle", (DIM,) * DEVICES, CLASSES, (SIDE, SIDE, 3))
        (place / "pictures").mkdir()
        Image.fromarray(pictures[0]).save(place / "pictures" / "own.bmp")
        cells = [stack.enter_context(shaped_cell(place, choice, line, near, far)) for choice in choices]
        stack.enter_context(near.inside())
        clients = [stack.enter_context(cell.client()) for cell in cells]
        sides = [_Side(client, pictures) for client in clients]
        own = _Side(stack.enter_context(cells[0].client()), [None])
        tell(f"links: {line.name} carries {rate_mbit:.0f} Mbit/s\n")
        blocks = alternate(line.name, [side.measure for side in (*sides, own)], duration_s)
        names = [*choices, OWN]
        names[choices.index("auto")] = f"auto, {clients[choices.index('auto')].status().images} at the end"
        sizes = [round(side.bytes_a_device()) for side in sides]
    figure = f"{SIDE} px over {line.name}"
    rows = [Row(figure=f"{figure}: plain TCP", side="link", unit="Mbit/s", p50=round(rate_mbit, 1), samples=1)]
    for name, found in zip(names, blocks, strict=True):
        is_judged = name.startswith("auto") and line == LINES[0]
        rows.append(_latency(f"{figure}: client to answer", name, found, blocks[0], WANTED if is_judged else None))
    rows += [
        Row(figure=f"{figure}: a frame to one device", side=name, unit="B", p50=size, samples=len(found))
        for name, size, found in zip(names, sizes, blocks, strict=False)
    ]
    return rows


def _latency(figure: str, side: str, blocks: list[Samples], raw: list[Samples], wanted: float | None) -> Row:
    samples = np.concatenate(blocks)
    ratio = p50(samples) / p50(np.concatenate(raw))
    return Row(
        figure=figure,
        side=side,
        unit="us",
        p50=round(p50(samples), 1),
        p99=round(p99(samples), 1),
        p50_interval=bootstrap(blocks, p50),
        p99_interval=bootstrap(blocks, p99),
        samples=len(samples),
        ratio=round(ratio, 3),
        against="raw",
        wanted="" if wanted is None else f"<= {wanted:g} x",
        holds=None if wanted is None else ratio <= wanted,
    )


def main(chosen: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 20.0, "how long each side is measured on each link")
    parser.add_argument("--images", type=int, default=TEST_IMAGES, help="how many test images tell the accuracy")
    parser.add_argument("--links", type=int, default=len(LINES), help="over how many of the links, the fastest first")
    options = parser.parse_args(chosen)
    words = sys.argv[1:] if chosen is None else chosen
    results = run(
        options.duration, LINES[: options.links], options.images, " ".join(("python -m benchmarks.links.run", *words))
    )
    finish(results, options)


if __name__ == "__main__":
    main()
