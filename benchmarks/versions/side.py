"""One version's cell, started and asked on request: runs in that version's Python.

Standard input has a request a line: ``start CELL``, ``alone SECONDS``, ``saturated SECONDS``, ``stop``. Each is
answered by a line of JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from devit_pipeline.local_cell import LocalCell, LocalDevice

SHIPPED = Path("pipeline/devit_pipeline/fashion_mnist/bundle")
SHIPPED_DEVICES, DEIT_DEVICES = 4, 2
CLASSES, GOLDEN, CALIBRATION, DEIT_SIDE = 10, 16, 128, 224
IN_FLIGHT = 16
UInt8Array = npt.NDArray[np.uint8]
BUILD = Path(sys.executable).with_name("devit")


def main(root: Path, settings: str, build_options: list[str]) -> None:
    """Serve requests until standard input ends."""
    print("ready", flush=True)  # noqa: T201 - the protocol
    with ExitStack() as stack:
        cell: Cell | None = None
        for line in sys.stdin:
            request, _, argument = line.strip().partition(" ")
            if request == "start":
                cell = stack.enter_context(Cell(root, argument, settings, build_options))
                found: object = {"kept": cell.kept}
            elif cell is None:
                raise SystemExit(f"{request}: expected start CELL before it")
            elif request == "stop":
                stack.close()
                found = {}
            else:
                found = {"alone": cell.alone, "saturated": cell.saturated}[request](float(argument))
            print(json.dumps(found), flush=True)  # noqa: T201 - the protocol


class Cell:
    """A running cell and its client; a context manager.

    ``null`` and ``paced:MS`` are four devices of the shipped bundle with that engine, ``shipped`` has its own engines,
    and ``deit`` is two devices with a DeiT-Tiny each, at random weights.
    """

    def __init__(self, root: Path, name: str, settings: str, build_options: list[str]) -> None:
        """Make the bundle and build its engines, if the cell has any; ``settings`` are lines of ``fleet.toml``."""
        self._stack = ExitStack()
        self._place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="devit-")))
        self.kept: list[str] = []
        """The variant that each submodel runs; empty where the engines are not built."""
        bundle, count, store = root / SHIPPED, SHIPPED_DEVICES, self._place / "store"
        if name == "deit":
            bundle, count = self._place / "bundle", DEIT_DEVICES
            write_deit(root, bundle)
        if name in ("deit", "shipped"):
            build = [BUILD, "build", bundle, "--store", store, "--json", *build_options]
            done = subprocess.run(build, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            # Version 211bfe4 has the variant by an older name.
            self.kept = [
                each["record"]["key"]["variant"] if "record" in each else each["rung"]
                for each in json.loads(done.stdout)
            ]
        self._is_busy = name == "deit"
        engine = "built" if name in ("deit", "shipped") else name
        devices = [LocalDevice(f"device{index}", index, engine=engine) for index in range(count)]
        more = {"settings": settings} if settings else {}  # older versions know none
        self._cell = LocalCell(bundle, self._place / "cell", devices, store=store, deadline_ms=5000, **more)
        shape = (DEIT_SIDE, DEIT_SIDE, 3) if name == "deit" else (28, 28, 1)
        self._images = list(np.random.default_rng(1).integers(0, 256, (64, *shape), np.uint8))

    def __enter__(self) -> Cell:
        """Start it."""
        self._stack.enter_context(self._cell)
        self._client = self._stack.enter_context(self._cell.client())
        # Else the kernel may leave two busy agents on one core for seconds, which doubles the latency.
        cores = sorted(os.sched_getaffinity(0))
        for index, name in enumerate(self._cell.devices if self._is_busy else ()):
            for thread in Path(f"/proc/{self._cell.pid(name)}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {cores[index % len(cores)]})
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._stack.close()

    def alone(self, duration_s: float) -> dict[str, object]:
        """Ask for one image after the other: what each took in us, the node's CPU time a frame, an agent's memory."""
        taken_us: list[float] = []

        def ask(image: UInt8Array) -> None:
            start_s = time.perf_counter()
            self._client.classify(image)
            taken_us.append((time.perf_counter() - start_s) * 1e6)

        counted = self._counted(map(ask, self._until(duration_s)))
        return {"taken_us": taken_us, "agent_mb": _resident_mb(self._cell.pid("device0")), **counted}

    def saturated(self, duration_s: float) -> dict[str, object]:
        """Keep requests under way: answers a second, and the node's CPU time a frame."""
        return self._counted(self._client.stream(self._until(duration_s), in_flight=IN_FLIGHT))

    def _until(self, duration_s: float) -> Iterator[UInt8Array]:
        """Give images for a while, one at least."""
        end_s = time.perf_counter() + duration_s
        for number, image in enumerate(itertools.cycle(self._images)):
            if number and time.perf_counter() >= end_s:
                return
            yield image

    def _counted(self, answers: Iterator[object]) -> dict[str, object]:
        """Take all answers: what was still under way would run into the block of the next side."""
        before_s, start_s = _cpu_s(self._cell.pid("node")), time.perf_counter()
        frames = sum(1 for _ in answers)
        wall_s = time.perf_counter() - start_s
        node_us = (_cpu_s(self._cell.pid("node")) - before_s) * 1e6 / frames
        return {"frames_per_s": frames / wall_s, "node_us": node_us}


def write_deit(root: Path, folder: Path) -> None:
    """Write a bundle of DeiT-Tiny submodels with this version's exporter."""
    import torch

    try:
        from devit_decompose.models.model import PRESETS, Model, uniform_config
    except ModuleNotFoundError:  # before packages had rooms
        from devit_decompose.model import PRESETS, Model, uniform_config
    from devit_export.graph import export_features

    sys.path.insert(0, str(root / "benchmarks/network"))
    from bundles import Submodel, random_head, write_bundle

    preset, shape = PRESETS["DeiT-Ti"], (DEIT_SIDE, DEIT_SIDE, 3)
    golden, others = np.split(_pictures(root)[: GOLDEN + CALIBRATION], [GOLDEN])
    submodels = []
    for seed in range(DEIT_DEVICES):
        torch.manual_seed(seed)
        config = uniform_config(
            backbone=preset.backbone,
            image_size=shape,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            stem=preset.stem,
            depth=preset.depth,
            heads=preset.heads,
            mlp_ratio=preset.mlp_ratio,
            classes=tuple(range(CLASSES)),
        )
        model = Model(config).eval()
        with torch.inference_mode():
            features = model.features(torch.from_numpy(golden)).numpy()
        graph = export_features(model, f"submodel-{seed}.onnx").content
        submodels.append(Submodel(graph, features, **_int8(graph, others)))
    head = random_head([each.features.shape[1] for each in submodels], CLASSES)
    write_bundle(folder, submodels, head, CLASSES, golden)


def _int8(graph: bytes, images: UInt8Array) -> dict[str, bytes]:
    """Give the graph's variant ``int8``, if this version has one."""
    try:
        from devit_export.int8.quantize import quantize
    except ModuleNotFoundError:
        return {}
    import onnx

    return {"int8": quantize(onnx.load_from_string(graph), images, (), "DeiT-Ti").SerializeToString()}


def _pictures(root: Path) -> UInt8Array:
    """Enlarge the golden images of the shipped bundle, ``(n, 224, 224, 3)``: noise would tell variants too little."""
    small = safetensors.numpy.load_file(root / SHIPPED / "golden.safetensors")["images"]
    factor = DEIT_SIDE // small.shape[1]
    return small.repeat(factor, axis=1).repeat(factor, axis=2).repeat(3, axis=3)


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Rss:"))


def _cpu_s(pid: int) -> float:
    """Time of all threads so far; sched_schedstats of the kernel counts nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
