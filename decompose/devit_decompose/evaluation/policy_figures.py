"""Measures a policy on the test images of a models folder: what it asks, what it costs, and how often it flips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from devit_contract.arrays import Int64Array
from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.head import devices_of
from devit_contract.choices import Order, Policy
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress
from devit_decompose.evaluation.evaluate import data_of, load_cell, mcnemar
from devit_decompose.evaluation.policies import (
    DEFAULT_STAGES,
    Judged,
    complete_stages,
    parse_stages,
    paths_of,
    play,
    rotations,
)
from devit_decompose.models_folder.decomposition import Decomposition
from devit_decompose.models_folder.subset_accuracy import joined_features


@dataclass(frozen=True)
class Choice:
    """A policy, and for ``certain`` how it is carried out."""

    policy: Policy = "certain"
    flips: float = 0.01
    """Promised share of answers that differ from those of all devices."""
    confidence: float = 0.95
    stages: str = ""
    """Such as ``1-1-2``; empty is the default."""
    order: Order = "rotating"

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        for name, value in (("flips", self.flips), ("confidence", self.confidence)):
            if not 0.0 < value < 1.0:
                raise InputError(f"{name}: expected a share between 0 and 1, e.g. 0.01, found {value:g}")


class CertainFigures(msgspec.Struct, frozen=True):
    """How answers were found certain."""

    promised_flips: float
    confidence: float
    stages: str
    order: Order
    thresholds: dict[str, float | None]
    """Score from which on an answer is certain, by devices, e.g. ``0,2``; None where none is."""


class PolicyFigures(msgspec.Struct, frozen=True):
    """What a policy makes of the test images, the mean over all devices that may be first; accuracies in percent."""

    name: str
    data: str
    test_images: int
    is_stored_test_set: bool
    """Whether decomposition.json was measured on these images."""
    policy: Policy
    certain: CertainFigures | None
    devices: int
    devices_asked: float
    """Mean per answer; so are the next."""
    stages: float
    million_macs: float
    """Multiply-accumulates of the devices that were asked."""
    million_macs_all: float
    flips: float
    """Share of answers that differ from those of all devices, in 0 to 1."""
    flips_of_worst_start: float
    """The same for the first device with the most."""
    accuracy: float
    accuracy_all: float
    """With all devices."""
    shares_asked: dict[int, float]
    """Share of answers, in 0 to 1, by how many devices were asked."""
    only_policy_right: int
    """Images, where the first device takes turns; so is the next."""
    only_all_right: int
    p_value: float
    """Of the exact two-sided McNemar test of these two."""


def evaluate_policies(
    models: Path, choices: Sequence[Choice], *, data: Path | None, progress: Progress
) -> list[PolicyFigures]:
    """Play policies on the test images of a models folder, in ``data`` or where the training had them.

    Raises:
        InputError: A file cannot be read, stages do not fit the cell, or nothing says which answers are certain.
        ManifestError: The models folder breaks its format or a digest.
    """
    cell, test = load_cell(models), data_of(models, data).test
    found = cell.decomposition
    plans = [_plan(models, found, choice) for choice in choices]
    progress("evaluating", 0, 2, "submodels")
    judged = Judged(cell.head, joined_features(cell.submodels, test.images))
    progress("evaluating", 1, 2, "policies")
    is_stored = test.digest() == found.data.test_sha256
    figures = [_figures(found, judged, test.labels, plan, is_stored_test_set=is_stored) for plan in plans]
    progress("evaluating", 2, 2)
    return figures


@dataclass(frozen=True)
class _Plan:
    """A choice, worked out for one cell."""

    choice: Choice
    stages: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    thresholds: dict[int, float]


def _plan(models: Path, found: Decomposition, choice: Choice) -> _Plan:
    devices = len(found.submodels)
    stages = parse_stages(choice.stages, devices) if choice.stages else complete_stages(DEFAULT_STAGES, devices)
    if choice.policy != "certain":
        return _Plan(choice, (), paths_of(choice.policy, (), _orders(found, choice.policy, choice.order)), {})
    paths = paths_of("certain", stages, _orders(found, "certain", choice.order))
    calibration = _calibration(models, found)
    thresholds = {
        mask: calibration.threshold(mask, flips=choice.flips, confidence=choice.confidence, tests=len(stages) - 1)
        for path in paths
        for mask in path[:-1]
    }
    return _Plan(choice, stages, paths, thresholds)


def _orders(found: Decomposition, policy: Policy, order: Order) -> list[list[int]]:
    """List the orders in which devices may be asked; ``cost`` is by multiply-accumulates, as nothing runs here."""
    devices = range(len(found.submodels))
    if policy in ("all", "replica") or (policy == "certain" and order == "rotating"):
        return rotations(len(devices))
    if policy == "certain" and order == "cost":
        return [sorted(devices, key=lambda device: found.submodels[device].macs)]
    alone = {subset.mask: subset.validation_accuracy for subset in found.subsets}
    return [sorted(devices, key=lambda device: -alone[1 << device])]


def _calibration(models: Path, found: Decomposition) -> Calibration:
    for file in found.files:
        if file.role == "calibration":
            return Calibration.load(models / file.name, devices=len(found.submodels))
    raise InputError(
        f"{models}: expected a calibration, which says what answers are certain, found none: "
        f"run devit evaluate {models} --calibrate"
    )


def _figures(
    found: Decomposition, judged: Judged, labels: Int64Array, plan: _Plan, *, is_stored_test_set: bool
) -> PolicyFigures:
    played = play(judged, plan.paths, plan.thresholds)
    full = judged.answers(judged.head.all_devices)
    flips, in_turn = (played.answers != full).mean(axis=1), played.in_turn()
    only_policy = int(np.sum((in_turn == labels) & (full != labels)))
    only_all = int(np.sum((in_turn != labels) & (full == labels)))
    macs = [record.macs / 1e6 for record in found.submodels]
    asked = played.of_asked(int.bit_count)
    counts, answers = np.unique(asked, return_counts=True)
    return PolicyFigures(
        name=found.name,
        data=found.data.name,
        test_images=judged.images,
        is_stored_test_set=is_stored_test_set,
        policy=plan.choice.policy,
        certain=_certain(plan) if plan.thresholds else None,
        devices=len(macs),
        devices_asked=float(asked.mean()),
        stages=float(played.stages.mean()),
        million_macs=float(played.of_asked(lambda mask: sum(macs[device] for device in devices_of(mask))).mean()),
        million_macs_all=sum(macs),
        flips=float(flips.mean()),
        flips_of_worst_start=float(flips.max()),
        accuracy=100 * float((played.answers == labels).mean()),
        accuracy_all=100 * float((full == labels).mean()),
        shares_asked={int(count): float(share) for count, share in zip(counts, answers / asked.size, strict=True)},
        only_policy_right=only_policy,
        only_all_right=only_all,
        p_value=mcnemar(only_policy, only_all),
    )


def _certain(plan: _Plan) -> CertainFigures:
    return CertainFigures(
        promised_flips=plan.choice.flips,
        confidence=plan.choice.confidence,
        stages="-".join(map(str, plan.stages)),
        order=plan.choice.order,
        thresholds={
            ",".join(map(str, devices_of(mask))): threshold if math.isfinite(threshold) else None
            for mask, threshold in plan.thresholds.items()
        },
    )
