from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.network.open_loop import Record
from tests.support.cell import tiny_devices

from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.codec import State
from devit_pipeline.local_cell import LocalDevice

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
TOLERANCE = 0.05
"""Of logits, for engines in half precision."""


@dataclass(frozen=True)
class Golden:
    """Pictures whose answers are known, and differ from one another by each device's part alone."""

    pictures: list[npt.NDArray[np.uint8]]
    """Each of shape ``(H, W, C)``."""
    logits: dict[int, npt.NDArray[np.float32]]
    """Mask of devices to logits ``(n, K)``."""

    def check(self, record: Record) -> int:
        """Hold every answer against its golden one; tell how many had logits."""
        checked = 0
        for outcome in record.outcomes:
            if outcome.logits is None:
                assert outcome.state in (State.FAILED, State.NONE)
                continue
            np.testing.assert_allclose(outcome.logits, self.logits[outcome.mask][outcome.picture], atol=TOLERANCE)
            checked += 1
        return checked


@pytest.fixture(scope="session")
def golden(bundle: Bundle) -> Golden:
    """As many golden pictures as differ enough: a feature of another picture would be seen in the logits."""
    tensors, head = bundle.golden(), bundle.fusion_head()
    features = [tensors[f"features.{device}"] for device in range(len(head.dims))]
    ends = np.cumsum(head.dims)
    parts = [x @ head.weight[:, end - x.shape[1] : end].T for x, end in zip(features, ends, strict=True)]  # (n, K) each
    kept: list[int] = []
    for index in range(len(tensors["images"])):
        if all(np.abs(part[index] - part[other]).max() > 6 * TOLERANCE for part in parts for other in kept):
            kept.append(index)
    assert len(kept) >= 16
    fusion, joined = Fusion(head), np.concatenate(features, axis=1)[kept]  # (n, D)
    masks = range(1, head.all_devices + 1)
    images = np.asarray(tensors["images"], np.uint8)
    return Golden([images[index] for index in kept], {mask: fusion.batch_logits(joined, mask) for mask in masks})


@pytest.fixture(scope="session")
def devices() -> list[LocalDevice]:
    return tiny_devices()
