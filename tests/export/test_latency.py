"""What pruning takes off a model's cost it takes off its latency: nothing is masked, everything is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from devit_contract.arrays import Float64Array
from devit_decompose.models.model import PRESETS, Model, uniform_config
from devit_decompose.pruning.cost import macs
from devit_decompose.pruning.importance import importance
from devit_decompose.pruning.shrink import Shape, keep_best, prune
from devit_engines.engine import EngineSpec
from devit_engines.ort import OrtEngine
from devit_export.graph import export_features

pytestmark = [pytest.mark.nightly(part="endurance"), pytest.mark.timeout(900)]

IMAGE = (224, 224, 3)
ROUNDS = 60
WARM_UP = 5
LARGEST = "DeiT-S"
SHAPES = {
    # Unequal blocks, as the search finds them: many heads and neurons behind, few in front.
    "heads and neurons": Shape(12, 384, (2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6), (64,) * 12, (768,) * 6 + (1280,) * 6, ()),
    "every dimension": Shape(12, 304, (4, 5, 6) * 4, (40, 48, 32) * 4, (912, 1088, 768) * 4, ()),
    "width and depth": Shape(6, 304, (5,) * 6, (64,) * 6, (1216,) * 6, ()),
    "DeiT-Ti's": Shape(12, 192, (3,) * 12, (64,) * 12, (768,) * 12, ()),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """A DeiT-S, and models pruned from it, at random weights, since numbers take the same time whatever they are."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = uniform_config(
            image_size=IMAGE, mean=(0.5,) * 3, std=(0.25,) * 3, classes=(0, 1), **PRESETS[LARGEST]._asdict()
        )
        whole = Model(config).eval()
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))  # biases of zero would be left out of the graph
    scores = importance(whole, np.zeros((1, *IMAGE), np.uint8), "magnitude")
    return {LARGEST: whole} | {name: prune(whole, keep_best(whole, scores, shape)) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def latencies_ms(models: dict[str, Model]) -> Iterator[dict[str, Float64Array]]:
    """Batch 1, one thread, in turns, so that what else the machine does falls on all alike; ``(ROUNDS,)`` each."""
    image = np.random.default_rng(0).integers(0, 256, (1, *IMAGE), np.uint8)
    taken_ms: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                OrtEngine(export_features(model, name).content, EngineSpec(name, IMAGE, model.config.feature_dim))
            )
            for name, model in models.items()
        }
        for _ in range(WARM_UP + ROUNDS):
            for name, engine in engines.items():
                start_s = time.perf_counter()
                engine.features(image)
                taken_ms[name].append((time.perf_counter() - start_s) * 1000)
        yield {name: np.array(times[WARM_UP:]) for name, times in taken_ms.items()}


def test_latency_is_proportional_to_multiply_accumulates_within_a_quarter(
    models: dict[str, Model], latencies_ms: dict[str, Float64Array]
) -> None:
    costs = {name: macs(model.config, with_head=False) for name, model in models.items()}
    print(f"\n{'model':20}{'MMACs':>8}{'ms, median':>12}{'least':>8}{'MACs ratio':>12}{'ms ratio':>10}{'off by':>8}")
    off_by = {}
    for name, times_ms in latencies_ms.items():
        expected = costs[name] / costs[LARGEST]
        found = float(np.median(times_ms / latencies_ms[LARGEST]))  # of the same round
        off_by[name] = found / expected - 1
        median, least = np.median(times_ms), times_ms.min()
        print(f"{name:20}{costs[name] / 1e6:8.0f}{median:12.1f}{least:8.1f}", end="")
        print(f"{expected:12.3f}{found:10.3f}{off_by[name]:+8.0%}")
    assert min(costs.values()) < 0.3 * costs[LARGEST]  # else anything is proportional
    assert max(map(abs, off_by.values())) <= 0.25, off_by
