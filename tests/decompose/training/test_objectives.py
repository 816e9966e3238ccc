"""The joint stage: where the fusion starts, and that every subset of devices is trained to answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics
from devit_decompose.models.model import Model, StemLayer, uniform_config
from devit_decompose.models_folder.subset_accuracy import joined_features
from devit_decompose.recipe.training import AnswerRecipe, EnsembleRecipe, Schedule
from devit_decompose.training.losses import total
from devit_decompose.training.objectives import Ensemble, EnsembleObjective

LABELS_ALONE = AnswerRecipe(label_weight=1.0, teacher_weight=0.0)
SCHEDULE = Schedule(learning_rate=3e-3, decay_epochs=1, patience=0, max_epochs=1, label_smoothing=0.0)


def member(seed: int, classes: tuple[int, ...] = (0, 1, 2), backbone: str = "vit") -> Model:
    torch.manual_seed(seed)
    config = uniform_config(
        backbone=backbone,
        image_size=(6, 6, 1),
        mean=(0.5,),
        std=(0.2,),
        stem=(StemLayer(8, kernel=3, stride=3, batch_norm=False),),
        depth=1,
        heads=1,
        mlp_ratio=1.0,
        classes=classes,
    )
    return Model(config).eval()


def noisy_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a dim row; its place tells the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.randint(60, 200, (count, 6, 6, 1), dtype=torch.uint8, generator=generator)
    images[torch.arange(count), 2 * labels] //= 2
    return images, labels


@pytest.mark.parametrize("backbone", ["vit", "deit"])
def test_a_committee_starts_with_the_mean_of_its_members_answers(backbone: str) -> None:
    members = [member(seed, backbone=backbone) for seed in range(3)]
    ensemble = Ensemble(members, classes=3)
    ensemble.start_at_heads()
    images, _ = noisy_images(5)
    expected = torch.stack([torch.stack(one.answers(one.features(images))).mean(dim=0) for one in members]).mean(dim=0)
    torch.testing.assert_close(ensemble(images), expected)


def test_a_specialist_has_a_say_in_its_own_classes_alone() -> None:
    generalist, specialist = member(0), member(1, classes=(2, 0))
    ensemble = Ensemble([generalist, specialist], classes=3)
    ensemble.start_at_heads()
    images, _ = noisy_images(5)
    whole, own = (one.head(one.features(images)) for one in (generalist, specialist))
    torch.testing.assert_close(ensemble(images)[:, 1], whole[:, 1] / 2)
    torch.testing.assert_close(ensemble(images)[:, 2], (whole[:, 2] + own[:, 0]) / 2)
    torch.testing.assert_close(ensemble(images)[:, 0], (whole[:, 0] + own[:, 1]) / 2)


def test_the_loss_is_that_of_the_answers_which_the_node_gives_without_some_devices() -> None:
    """One subset of every size, fused by the node's own code: a loss of the whole answer alone is another number."""
    ensemble = Ensemble([member(seed) for seed in range(4)], classes=3)
    objective = EnsembleObjective(ensemble, 1, EnsembleRecipe(SCHEDULE, LABELS_ALONE, subset_weight=0.6), seed=0)
    images, labels = noisy_images(300)
    terms = {name: float(term.detach()) for name, term in objective(images, labels, None).items()}
    failout = objective.failout
    assert failout is not None
    statistics = FusionStatistics(failout.mean.double().numpy(), failout.covariance.double().numpy())
    fusion = Fusion(FusionHead(ensemble.dims, *ensemble.linear(), statistics))
    features = joined_features(ensemble.models(), images.numpy())

    def loss_of(masks: list[int]) -> float:
        logits = torch.from_numpy(np.stack([fusion.batch_logits(features, mask) for mask in masks]))
        return float(functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(masks))))

    masks = failout.draw()
    assert [mask.bit_count() for mask in masks] == [1, 2, 3]
    assert terms["labels"] == pytest.approx(0.4 * loss_of([0b1111]), rel=1e-4)
    assert terms["labels (failout)"] == pytest.approx(0.6 * loss_of(masks), rel=1e-3)


def test_each_member_alone_is_trained_though_the_whole_answer_needs_one_only() -> None:
    """Where the fusion reads one member, and is right by it, only the loss of subsets moves the others."""

    def moved(subset_weight: float) -> list[bool]:
        ensemble = Ensemble([member(seed) for seed in range(3)], classes=3)
        with torch.no_grad():
            ensemble.fusions[0].weight[:, 8:] = 0.0
        recipe = EnsembleRecipe(SCHEDULE, LABELS_ALONE, subset_weight=subset_weight)
        objective = EnsembleObjective(ensemble, 1, recipe, seed=0)
        for _ in range(8):
            total(objective(*noisy_images(60), None)).backward()  # type: ignore[no-untyped-call]
        gradients = [one.positions.grad for one in ensemble.models()]
        return [gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients]

    assert moved(0.75) == [True, True, True]
    assert moved(0.0) == [True, False, False]
