"""The shipped models in FP16 give the answers that they give in FP32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.files import read_tensors
from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.artefacts.manifest import Bundle
from devit_export.parity import run_graph

Run = Callable[[bytes, UInt8Array], Float32Array]

SHIPPED = Path(__file__).parents[2] / "pipeline" / "devit_pipeline" / "fashion_mnist"
AGREEMENT = 0.999

pytestmark = [pytest.mark.nightly(part="models"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(SHIPPED / "bundle")


@pytest.fixture(scope="module")
def images() -> UInt8Array:
    found: UInt8Array = read_tensors(SHIPPED / "test-images.safetensors", "")["images"]
    return found


def by_onnx_runtime(content: bytes, images: UInt8Array) -> Float32Array:
    """In FP32 between weights and Casts in FP16."""
    return run_graph("x.onnx", content, images)


def by_reference(content: bytes, images: UInt8Array) -> Float32Array:
    """Each step rounded to FP16, as on a device that accumulates no better."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(content))
    parts = [evaluator.run(None, {"images": images[at : at + 50]})[0] for at in range(0, len(images), 50)]
    answer: Float32Array = np.concatenate(parts)
    return answer


def fused(bundle: Bundle, variant: str, images: UInt8Array, run: Run) -> Float32Array:
    """Logits ``(n, K)`` of all devices."""
    head = FusionHead.load(bundle.path("fusion"))
    features = [
        run(bundle.path("submodel", device=device, variant=variant).read_bytes(), images)
        for device in range(len(bundle.manifest.submodels))
    ]
    return Fusion(head).batch_logits(np.concatenate(features, axis=1), head.all_devices)


def check_agreement(what: str, expected: Float32Array, found: Float32Array) -> None:
    """Print each answer that flipped with the margin it had, and hold their share to 0.1 %."""
    ordered = np.sort(expected, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    flips = np.flatnonzero(found.argmax(axis=1) != expected.argmax(axis=1))
    error = float(np.abs(found - expected).max())
    print(f"\n{what}: {len(flips)} of {len(expected)} answers flipped, logits off by at most {error:.4f}")
    for image in flips:
        print(
            f"  image {image}: {expected[image].argmax()} became {found[image].argmax()}, margin {margins[image]:.4f} "
            f"(5th percentile of all: {np.percentile(margins, 5):.4f})"
        )
    assert 1.0 - len(flips) / len(expected) >= AGREEMENT


@pytest.mark.parametrize("variant", ["fp16", "fp16-attn32"])
@pytest.mark.parametrize("run", [by_onnx_runtime, by_reference])
def test_fused_answers_agree_with_those_in_fp32(bundle: Bundle, images: UInt8Array, variant: str, run: Run) -> None:
    assert len(images) == 1000
    expected = fused(bundle, "fp32", images, by_onnx_runtime)
    check_agreement(f"{variant}, {run.__name__}", expected, fused(bundle, variant, images, run))


@pytest.mark.parametrize("variant", ["fp16", "fp16-attn32"])
def test_the_baseline_answers_agree_with_those_in_fp32(bundle: Bundle, images: UInt8Array, variant: str) -> None:
    expected, found = (
        by_onnx_runtime(bundle.path("baseline", variant=name).read_bytes(), images) for name in ("fp32", variant)
    )
    check_agreement(f"baseline {variant}", expected, found)
