from __future__ import annotations

import numpy as np
import torch

from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics
from devit_decompose.training.failout import Failout


def test_failout_puts_in_a_missing_place_what_the_fusion_node_puts_there() -> None:
    generator = np.random.default_rng(3)
    dims = (3, 2, 4)
    mixing = generator.normal(size=(9, 9))
    features = torch.from_numpy((generator.normal(size=(400, 9)) @ mixing).astype(np.float32))
    failout = Failout(dims, chance=0.5, seed=0)
    weight = generator.normal(size=(5, 9))
    for _ in range(10):
        (filled,) = failout(features)
        missing = [
            device
            for device in range(3)
            if not torch.equal(*(part.split(dims, 1)[device] for part in (filled, features)))
        ]
        mask = 0b111 & ~sum(1 << device for device in missing)
        statistics = FusionStatistics(failout.mean.double().numpy(), failout.covariance.double().numpy())
        fusion = Fusion(FusionHead(dims, weight, np.zeros(5), statistics))
        expected = fusion.batch_logits(features.numpy(), mask)
        np.testing.assert_allclose(filled.numpy() @ weight.T, expected, rtol=1e-3, atol=1e-3)


def test_failout_keeps_at_least_one_device() -> None:
    failout = Failout((1, 1), chance=1.0, seed=0)
    features = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        (filled,) = failout(features)
        assert (filled == features).all(dim=0).any()


def test_failout_goes_on_from_its_state() -> None:
    """What a checkpoint keeps is all that the next draw needs."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 4, generator=generator) for _ in range(6)]
    whole, first, second = (Failout((2, 2), chance=0.5, seed=7) for _ in range(3))
    expected = [whole(batch)[0] for batch in batches]
    for batch in batches[:3]:
        first(batch)
    second.load_state_dict(first.state_dict())
    for batch, wanted in zip(batches[3:], expected[3:], strict=True):
        torch.testing.assert_close(second(batch)[0], wanted, rtol=0, atol=0)


def test_gradients_reach_the_devices_that_stand_in() -> None:
    failout = Failout((2, 2), chance=1.0, seed=1)
    mixed = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    features = torch.cat([mixed, 2 * mixed], dim=1).requires_grad_()
    failout(features.detach())
    (filled,) = failout(features)
    filled.square().sum().backward()
    assert features.grad is not None
    kept = features.grad.abs().sum(dim=0) > 0
    assert int(kept.sum()) == 2  # those of the one device that is kept


def test_without_a_chance_every_size_of_subset_comes_in_every_batch_and_every_subset_in_turn() -> None:
    dims = (1, 2, 1, 1)
    failout = Failout(dims, chance=None, seed=5)
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    seen = set()
    for _ in range(60):
        kept = [
            tuple(
                device
                for device in range(4)
                if torch.equal(*(part.split(dims, 1)[device] for part in (filled, features)))
            )
            for filled in failout(features)
        ]
        assert [len(devices) for devices in kept] == [1, 2, 3]
        seen.update(kept)
    assert len(seen) == 2**4 - 2
