"""INT8 beside FP32 on this CPU: one engine in a process each, in turns, one thread.

python -m benchmarks.engines.int8 [--small]

DeiTs have random weights; they are made at the first run, which needs torch and onnxsim, and kept in the user's cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Samples, alternate, arguments, cache_folder, p50, p99, tell
from benchmarks.common.rows import Results, Row, bootstrap, command, finish

from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError

SHIPPED = Path(__file__).parents[2] / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
BOUNDS = {"DeiT-Ti": 1 / 1.6, "DeiT-S": 1 / 2.0}
"""Of the latency in INT8, as a share of that in FP32."""
MEMORY_BOUND = 0.7
OLD = "fp32, 211bfe4"
"""As the engine of that version held it, with the file's bytes; the bound of the memory is against this."""
SIDE, SMALL_SIDE = 224, 32
_CALIBRATION = 8
"""Images; no figure here depends on what the model answers."""
_FORM = 1
"""Counts what would make a kept file another one."""


@dataclass(frozen=True)
class Pair:
    """One model in both precisions."""

    name: str
    fp32: Path
    int8: Path
    image_shape: tuple[int, int, int]
    output_dim: int
    latency_bound: float | None
    memory_bound: float | None


class Holder:
    """A process with one engine; a context manager."""

    def __init__(self, model: Path, pair: Pair, *options: str) -> None:
        """Start it, and wait until the engine is warm."""
        words = [str(number) for number in (*pair.image_shape, pair.output_dim)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.engines.holder", str(model), *words, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._answer()

    def __enter__(self) -> Holder:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def latencies(self, duration_s: float) -> Samples:
        """Have it run for a while, and give what each image took, in microseconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{duration_s}\n")
        self._process.stdin.flush()
        return self._answer()

    @property
    def memory_mb(self) -> float:
        """What the process holds now, in MB of 10^6 bytes."""
        lines = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("Rss:"))
        return int(kib) * 1024 / 1e6

    def _answer(self) -> Samples:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError("the process with the engine ended: its message stands above")
        return np.asarray(json.loads(line), np.float64)


def deit(preset: str, *, small: bool) -> Pair:
    """Find a DeiT of random weights in both precisions, or make it."""
    side = SMALL_SIDE if small else SIDE
    depth = 1 if small else 12
    folder = cache_folder() / f"int8-{_FORM}" / f"{side}px"
    fp32, int8 = (folder / f"{preset}.{variant}.onnx" for variant in ("fp32", "int8"))
    if not int8.exists():
        plain, quantized = _made(preset, side, depth)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(fp32, plain)
        write_bytes(int8, quantized)  # last: where it is, both are whole
    bounds = (None, None) if small else (BOUNDS[preset], MEMORY_BOUND)
    return Pair(f"{preset}, {side} px", fp32, int8, (side, side, 3), {"DeiT-Ti": 384, "DeiT-S": 768}[preset], *bounds)


def shipped(bundle: Path = SHIPPED) -> Pair | None:
    """Find submodel 0 of the shipped bundle in both precisions; None where it has no INT8."""
    manifest = Bundle(bundle).manifest
    graph = manifest.graph("submodel", 0)
    if "int8" not in graph.variants:
        return None
    fp32, int8 = (bundle / manifest.file("submodel", device=0, variant=variant).name for variant in ("fp32", "int8"))
    return Pair("shipped submodel 0", fp32, int8, manifest.preprocess.shape, graph.output_dim, None, None)


def measured(pair: Pair, duration_s: float) -> Iterator[Row]:
    """Measure one model's two precisions in turns."""
    paths = {"fp32": pair.fp32, "int8": pair.int8}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Holder(path, pair)) for name, path in paths.items()}
        taken = alternate(pair.name, [side.latencies for side in sides.values()], duration_s)
        memory_mb = {name: side.memory_mb for name, side in sides.items()}
        memory_mb[OLD] = stack.enter_context(Holder(pair.fp32, pair, "hold")).memory_mb
    blocks_ms = {name: [block / 1000 for block in side] for name, side in zip(sides, taken, strict=True)}
    whole_ms = {name: np.concatenate(side) for name, side in blocks_ms.items()}
    for name, side in blocks_ms.items():
        yield Row(
            figure=f"{pair.name}: latency",
            side=name,
            unit="ms",
            p50=p50(whole_ms[name]),
            p99=p99(whole_ms[name]),
            p50_interval=bootstrap(side, p50),
            p99_interval=bootstrap(side, p99),
            samples=len(whole_ms[name]),
            **_against(whole_ms, name, "fp32", pair.latency_bound),
        )
    sizes_mb = {name: path.stat().st_size / 1e6 for name, path in paths.items()}
    plain = ("resident memory", memory_mb, OLD, pair.memory_bound), ("file", sizes_mb, "fp32", None)
    for what, found, against, bound in plain:
        for name, value in found.items():
            compared = _against(found, name, against, bound)
            yield Row(figure=f"{pair.name}: {what}", side=name, unit="MB", p50=value, samples=1, **compared)


def results(chosen: argparse.Namespace) -> Results:
    """Measure each model that is chosen.

    Raises:
        DevitError: A package is missing at the first run, or an engine does not start.
    """
    pairs = [deit(preset, small=chosen.small) for preset in BOUNDS]
    ours = shipped()
    watch = Watch()
    rows = [row for pair in (*pairs, *([ours] if ours else [])) for row in measured(pair, chosen.duration)]
    return Results(
        benchmark="int8",
        about="products in INT8 beside FP32, ONNX Runtime on this CPU, one thread",
        command=command(),
        settings={
            "models": "small stand-ins: no figure counts" if chosen.small else "random weights, as published in size",
            "VNNI": "yes" if _has_vnni() else "no",
            "shipped bundle": "measured" if ours else "has no int8: not measured",
        },
        versions={"onnxruntime": version("onnxruntime")},
        machine=watch.machine(),
        rows=tuple(rows),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a script."""
    parser = arguments(__doc__ or "", 20.0, "how long each side of a model is measured (default: 20)")
    parser.add_argument("--small", action="store_true", help="one block and 32 px: to see that it works")
    chosen = parser.parse_args(argv)
    try:
        finish(results(chosen), chosen)
    except InputError as err:
        tell(f"error: {err}\n")
        return 1
    return 0


def _against(
    sides: Mapping[str, Samples | float], name: str, against: str, bound: float | None
) -> dict[str, float | str | bool]:
    """Give the fields of a row that hold INT8 against another side, by their medians."""
    if name != "int8":
        return {}
    ratio = float(np.median(sides[name]) / np.median(sides[against]))
    wanted = {} if bound is None else {"wanted": f"<= {bound:.3g} x", "holds": ratio <= bound}
    return {"ratio": ratio, "against": against, **wanted}


def _made(preset: str, side: int, depth: int) -> tuple[bytes, bytes]:
    """Export a DeiT, whose biases and gains are random too: those of a trained one are not 0 and 1."""
    missing = [package for package in ("torch", "onnxsim") if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"{preset}: exporting it, once, needs {', '.join(missing)}: pip install 'devit[export]'")
    tell(f"int8: exporting {preset} with random weights, once\n")
    import onnx
    import torch

    from devit_decompose.models.model import PRESETS, Model, uniform_config
    from devit_export.graph import export_features
    from devit_export.int8.quantize import quantize

    shape = PRESETS[preset]
    config = uniform_config(
        backbone=shape.backbone,
        image_size=(side, side, 3),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stem=shape.stem,
        depth=depth,
        heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        classes=tuple(range(2)),
    )
    torch.manual_seed(1)
    model = Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    exported = export_features(model, preset)
    images = np.random.default_rng(1).integers(0, 256, (_CALIBRATION, side, side, 3), np.uint8)
    quantized = quantize(onnx.load_from_string(exported.content), images, (), preset)
    return exported.content, quantized.SerializeToString(deterministic=True)


def _has_vnni() -> bool:
    """Whether this x86 multiplies INT8 in one step."""
    return "vnni" in Path("/proc/cpuinfo").read_text()


if __name__ == "__main__":
    sys.exit(main())
