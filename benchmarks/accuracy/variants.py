"""What each variant of the shipped bundle costs in right answers: all devices at it, on Fashion-MNIST's test images.

ONNX Runtime computes the FP16 of a graph in FP32, so the rows with FP16 show what rounded weights do, and no more.

python -m benchmarks.accuracy.variants [--images N] [--json] [--save]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import arguments, tell
from benchmarks.common.rows import Results, Row, command, finish

from devit_contract.arrays import Float32Array, Int64Array, UInt8Array
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Variant
from devit_contract.errors import InputError

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
MOST_LOST_POINTS = 0.2


def rows(bundle: Bundle, images: UInt8Array, labels: Int64Array) -> Iterator[Row]:
    """Measure the fused cell and the baseline, variant by variant."""
    from devit_export.parity import run_graph

    fusion, count = Fusion(bundle.fusion_head()), len(bundle.manifest.submodels)
    plain: dict[str, Int64Array] = {}
    for variant in reversed(bundle.manifest.submodels[0].variants):  # FP32 first
        outputs: list[Float32Array] = []
        for device in range(count):
            tell(f"variants: {variant}, submodel {device}")
            graph = bundle.read("submodel", device=device, variant=variant)
            outputs.append(run_graph(f"submodel-{device}.{variant}.onnx", graph, images))
        size = bundle.manifest.file("submodel", device=0, variant=variant).size_bytes or 0
        yield Row(figure="size of submodel 0", side=variant, unit="kB", p50=size / 1e3, samples=1)
        whole = fusion.batch_logits(np.concatenate(outputs, axis=1), fusion.head.all_devices)
        baseline = run_graph(f"baseline.{variant}.onnx", bundle.read("baseline", variant=variant), images)
        for what, logits in ((f"fused cell of {count}", whole), ("baseline", baseline)):
            answers = logits.argmax(axis=1)
            yield from _of(what, variant, answers, plain.setdefault(what, answers), labels)
    tell("")


def _of(what: str, variant: Variant, answers: Int64Array, plain: Int64Array, labels: Int64Array) -> Iterator[Row]:
    right, before = (100.0 * float((found == labels).mean()) for found in (answers, plain))
    wanted = {"wanted": f"within {MOST_LOST_POINTS} points", "holds": before - right <= MOST_LOST_POINTS + 1e-9}
    judged = wanted if variant.startswith("int8") else {}
    size = len(labels)
    yield Row(figure=f"right answers, {what}", side=variant, unit="%", p50=right, samples=size, **judged)
    flips = 100.0 * float((answers != plain).mean())
    yield Row(figure=f"answers other than in FP32, {what}", side=variant, unit="%", p50=flips, samples=size)


def results(chosen: argparse.Namespace) -> Results:
    """Measure."""
    from devit_decompose.data.dataset import load_dataset
    from devit_decompose.recipe.reader import load_recipe

    watch, bundle = Watch(), Bundle(BUNDLE)
    test = load_dataset(load_recipe(ROOT / "examples" / "fashion-mnist.toml").data).test
    count = min(chosen.images, len(test))
    found = tuple(rows(bundle, test.images[:count], test.labels[:count]))
    return Results(
        benchmark="variants",
        about="right answers of the shipped cell by the precision of its devices",
        command=command(),
        settings={"test images": count},
        versions={"onnxruntime": version("onnxruntime")},
        machine=watch.machine(),
        rows=found,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a script."""
    parser = arguments(__doc__ or "", 0.0, "nothing here takes a time that could be chosen")
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="test images (default: all 10,000)")
    chosen = parser.parse_args(argv)
    try:
        finish(results(chosen), chosen)
    except InputError as err:
        tell(f"error: {err}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
