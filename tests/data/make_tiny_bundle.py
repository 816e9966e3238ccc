"""Make ``tiny-bundle/``: two one-layer submodels, a baseline and a fusion head, small enough to be kept here.

Images are noisy gradients, 6 x 8 pixels, gray; the label says towards which side they get brighter. The reference
features and logits are computed by numpy alone, so that they judge every engine from outside.

Run ``python tests/data/make_tiny_bundle.py`` to write the folder again; only this needs onnx.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array, Int64Array, UInt8Array
from devit_contract.artefacts.file_list import FileEntry, describe_file
from devit_contract.artefacts.files import write_bytes, write_tensors
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics
from devit_contract.artefacts.manifest import (
    SCHEMA,
    GraphRecord,
    Manifest,
    Parity,
    Preprocess,
    SubsetAccuracy,
    write_manifest,
)
from devit_contract.choices import Variant

if TYPE_CHECKING:
    import onnx

FOLDER = Path(__file__).parent / "tiny-bundle"
LABELS = ("up", "down", "left", "right")
HEIGHT, WIDTH = 6, 8
DIMS = (6, 4)
GOLDEN = 64
VARIANTS: tuple[Variant, ...] = ("fp16", "fp16-attn32", "fp32")
OPSET = 17


@dataclass(frozen=True)
class Layer:
    """``x / 255 @ weight + bias``, and for a submodel a ReLU behind it."""

    weight: Float32Array
    """Shape ``(48, dim)``."""
    bias: Float32Array
    """Shape ``(dim,)``."""
    has_relu: bool

    def numpy(self, images: UInt8Array) -> Float32Array:
        """Compute the reference: images ``(n, 6, 8, 1)`` to ``(n, dim)``."""
        pixels = images.reshape(len(images), -1).astype(np.float64) / 255.0
        outputs = pixels @ self.weight.astype(np.float64) + self.bias.astype(np.float64)
        return (np.maximum(outputs, 0.0) if self.has_relu else outputs).astype(np.float32)

    def graph(self, variant: str) -> onnx.ModelProto:
        """Write the same as an ONNX graph, in half precision unless the variant is ``fp32``."""
        from onnx import TensorProto, helper, numpy_helper

        half = variant != "fp32"
        kind, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
        last = "outputs" if half else "features"
        nodes = [
            helper.make_node("Cast", ["images"], ["numbers"], name="cast", to=kind),
            helper.make_node("Mul", ["numbers", "scale"], ["pixels"], name="normalise"),
            helper.make_node("Reshape", ["pixels", "flat"], ["rows"], name="flatten"),
            helper.make_node("MatMul", ["rows", "weight"], ["products"], name="multiply"),
            helper.make_node("Add", ["products", "bias"], ["sums"], name="add"),
            helper.make_node("Relu" if self.has_relu else "Identity", ["sums"], [last], name="activate"),
        ]
        if half:
            nodes.append(helper.make_node("Cast", [last], ["features"], name="widen", to=TensorProto.FLOAT))
        constants = {
            "scale": np.array(1.0 / 255.0, number),
            "flat": np.array([-1, HEIGHT * WIDTH], np.int64),
            "weight": self.weight.astype(number),
            "bias": self.bias.astype(number),
        }
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 1])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(self.bias)])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])


@dataclass(frozen=True)
class Split:
    """Images of one purpose."""

    images: UInt8Array
    """Shape ``(n, 6, 8, 1)``."""
    labels: Int64Array
    """Shape ``(n,)``, the four classes in turn."""


def gradients(count: int, rng: np.random.Generator) -> Split:
    """Draw ``count`` noisy images, balanced over the classes."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    down, right = rows / (HEIGHT - 1), columns / (WIDTH - 1)
    clean = np.stack([1.0 - down, down, 1.0 - right, right])  # (4, 6, 8)
    labels = np.arange(count) % len(LABELS)
    noisy = 60.0 + 130.0 * clean[labels] + rng.normal(0.0, 40.0, (count, HEIGHT, WIDTH))
    return Split(np.clip(noisy, 0.0, 255.0).astype(np.uint8)[..., None], labels)


def fit(inputs: npt.NDArray[np.float64], labels: Int64Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Fit logits to one-hot targets by least squares: weight ``(d, K)`` and bias ``(K,)``."""
    targets = 8.0 * np.eye(len(LABELS))[labels]
    mean = inputs.mean(axis=0)
    centred = inputs - mean
    ridge = 1e-2 * np.trace(centred.T @ centred) / centred.shape[1] * np.eye(centred.shape[1])
    weight = np.linalg.solve(centred.T @ centred + ridge, centred.T @ targets)
    bias = targets.mean(axis=0) - mean @ weight
    return weight, bias


def submodel(dim: int, rng: np.random.Generator) -> Layer:
    """Draw a submodel whose ReLU is open for about half of the images."""
    weight = rng.normal(0.0, 1.0, (HEIGHT * WIDTH, dim))
    weight -= weight.mean(axis=0)
    return Layer(weight.astype(np.float32), rng.normal(0.0, 0.2, dim).astype(np.float32), has_relu=True)


def fuse(layers: list[Layer], split: Split) -> FusionHead:
    """Fit the linear head and keep the statistics for missing devices."""
    features = np.concatenate([layer.numpy(split.images) for layer in layers], axis=1).astype(np.float64)
    weight, bias = fit(features, split.labels)
    statistics = FusionStatistics(features.mean(axis=0), np.cov(features, rowvar=False))
    return FusionHead(DIMS, weight.T, bias, statistics)


def accuracy(logits: Float32Array, split: Split) -> float:
    """Share of right answers, in 0 to 1."""
    return float(np.mean(logits.argmax(axis=1) == split.labels))


def parity(layer: Layer, variant: str, images: UInt8Array) -> Parity:
    """Compare the graph with numpy, by onnx's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    graph = layer.graph(variant)
    (outputs,) = ReferenceEvaluator(graph).run(None, {"images": images})
    errors = np.abs(np.asarray(outputs, np.float32) - layer.numpy(images))
    kinds = [node.op_type for node in graph.graph.node]
    return Parity(
        variant=variant,
        max_abs_error=round(float(errors.max()), 9),
        mean_abs_error=round(float(errors.mean()), 9),
        nodes_before=len(kinds),
        nodes_after=len(kinds),
        casts=kinds.count("Cast"),
        simplify_max_abs_error=0.0,
    )


def ranges(layer: Layer, images: UInt8Array) -> dict[str, float]:
    """Find the largest absolute number of every tensor of the FP32 graph, rounded to four digits."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    graph = layer.graph("fp32")
    names = [output for node in graph.graph.node for output in node.output]
    del graph.graph.output[:]
    graph.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    found = ReferenceEvaluator(graph).run(None, {"images": images})
    return {name: float(f"{np.abs(tensor).max():.4g}") for name, tensor in zip(names, found, strict=True)}


def record(layer: Layer, classes: tuple[int, ...], images: UInt8Array) -> GraphRecord:
    """Describe one model for the manifest; it has neither norms nor attention to keep in FP32."""
    return GraphRecord(
        output_dim=len(layer.bias),
        macs=layer.weight.size,
        variants=VARIANTS,
        parity=tuple(parity(layer, variant, images) for variant in VARIANTS),
        class_subset=classes,
        ranges=ranges(layer, images),
        overflows=(),
        attentions=0,
        fp32_nodes={variant: () for variant in VARIANTS if variant != "fp32"},
    )


def write_graph(folder: Path, layer: Layer, role: str, device: int | None, variant: str) -> FileEntry:
    """Write one variant of one model."""
    name = f"{role}.{variant}.onnx" if device is None else f"{role}-{device}.{variant}.onnx"
    write_bytes(folder / name, layer.graph(variant).SerializeToString(deterministic=True))
    return describe_file(folder, name, role, device=device, variant=variant)


def make(folder: Path) -> None:
    """Write the whole bundle."""
    rng = np.random.default_rng(2309)
    training, validation, test = (gradients(count, rng) for count in (1024, 512, 512))
    layers = [submodel(dim, rng) for dim in DIMS]
    head = fuse(layers, training)
    pixels = training.images.reshape(len(training.images), -1) / 255.0
    weight, bias = fit(pixels, training.labels)
    baseline = Layer(weight.astype(np.float32), bias.astype(np.float32), has_relu=False)
    golden = Split(validation.images[:GOLDEN], validation.labels[:GOLDEN])
    graphs: list[tuple[Layer, str, int | None]] = [
        *((layer, "submodel", device) for device, layer in enumerate(layers)),
        (baseline, "baseline", None),
    ]
    files = [
        write_graph(folder, layer, role, device, variant) for layer, role, device in graphs for variant in VARIANTS
    ]
    head.save(folder / "fusion.safetensors")
    files.append(describe_file(folder, "fusion.safetensors", "fusion"))
    write_golden(folder / "golden.safetensors", golden, layers, baseline, folder / "fusion.safetensors")
    files.append(describe_file(folder, "golden.safetensors", "golden"))
    manifest = Manifest(
        schema=SCHEMA,
        serial=1,
        name="tiny",
        code_version="0.1.0",
        opset=OPSET,
        labels=LABELS,
        preprocess=Preprocess(height=HEIGHT, width=WIDTH, colour="gray"),
        missing="conditional-mean",
        submodels=(
            record(layers[0], (0, 1), golden.images),
            record(layers[1], (2, 3), golden.images),
        ),
        subsets=subsets(layers, head, validation, test),
        test_data="512 drawn gradients",
        files=tuple(files),
        baseline=record(baseline, (0, 1, 2, 3), golden.images),
        baseline_accuracy=SubsetAccuracy(
            0, accuracy(baseline.numpy(validation.images), validation), accuracy(baseline.numpy(test.images), test)
        ),
    )
    write_manifest(folder, manifest)


def subsets(layers: list[Layer], head: FusionHead, validation: Split, test: Split) -> tuple[SubsetAccuracy, ...]:
    """Measure every subset of devices."""
    fusion = Fusion(head)
    found = []
    for mask in range(1, head.all_devices + 1):
        shares = []
        for split in (validation, test):
            features = np.concatenate([layer.numpy(split.images) for layer in layers], axis=1)
            shares.append(accuracy(fusion.batch_logits(features, mask), split))
        found.append(SubsetAccuracy(mask, *shares))
    return tuple(found)


def write_golden(path: Path, golden: Split, layers: list[Layer], baseline: Layer, fusion: Path) -> None:
    """Write the golden set; the logits use the head as a device reads it back, in float32."""
    features = [layer.numpy(golden.images) for layer in layers]
    head = FusionHead.load(fusion)
    logits = np.concatenate(features, axis=1) @ head.weight.T + head.bias
    tensors = {f"features.{device}": feature for device, feature in enumerate(features)}
    tensors["baseline.logits"] = baseline.numpy(golden.images)
    tensors["logits"] = logits.astype(np.float32)
    write_tensors(path, {"images": golden.images, "labels": golden.labels, **tensors})


if __name__ == "__main__":
    make(FOLDER)
