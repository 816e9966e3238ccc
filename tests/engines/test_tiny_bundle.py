"""The tiny bundle in ``tests/data`` is what its script makes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.artefacts.manifest import Bundle

DATA = Path(__file__).parents[1] / "data"


def test_the_golden_logits_are_those_of_the_fusion_head() -> None:
    bundle = Bundle(DATA / "tiny-bundle")
    golden = bundle.golden()
    fusion = Fusion(FusionHead.load(bundle.path("fusion")))
    features = np.concatenate([golden["features.0"], golden["features.1"]], axis=1)
    np.testing.assert_allclose(fusion.batch_logits(features, 0b11), golden["logits"], atol=1e-4)


def test_the_golden_answers_are_mostly_right_and_their_labels_balanced() -> None:
    golden = Bundle(DATA / "tiny-bundle").golden()
    assert np.bincount(golden["labels"]).tolist() == [16, 16, 16, 16]
    assert np.mean(golden["logits"].argmax(axis=1) == golden["labels"]) > 0.8


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed here")
def test_the_script_makes_the_same_bundle(tmp_path: Path) -> None:
    """Other releases of onnx and numpy may write other bytes, so figures are compared and not digests."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(DATA)!r})
import make_tiny_bundle
make_tiny_bundle.make(Path({str(tmp_path)!r}))
"""
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
    made, kept = Bundle(tmp_path), Bundle(DATA / "tiny-bundle")
    for name, tensor in kept.golden().items():
        np.testing.assert_allclose(made.golden()[name], tensor, atol=1e-4)
    assert made.manifest.submodels[0].variants == kept.manifest.submodels[0].variants
    assert made.manifest.preprocess == kept.manifest.preprocess
