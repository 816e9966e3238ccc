"""What a plan knows of a cell: its devices by their profiles, and how good the answers of its subsets are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.manifest import Manifest
from devit_contract.artefacts.trial import FLIP, RIGHT, Trial
from devit_contract.errors import InputError, ManifestError
from devit_profiling.plan.device_profile import DeviceProfile, check_fits
from devit_profiling.plan.simulation import BoolArray, Outcome, Server

_NODE_MS = 0.5
"""What node, client and agent add to an answer, where no run of ``profile`` has measured it: docs/design.md."""
_LINK_BITS_PER_MS = 1e6
"""Of Gigabit Ethernet, for the image."""


@dataclass(frozen=True)
class PlannedDevice:
    """One device of the fleet."""

    name: str
    server: Server
    idle_w: float | None
    above_idle_j: float | None
    """Per inference."""


@dataclass(frozen=True)
class Cell:
    """A fleet with its bundle."""

    devices: tuple[PlannedDevice, ...]
    """By number of the submodel."""
    manifest: Manifest
    calibration: Calibration | None
    credit: int
    extras_w: float
    overhead_from: str
    """Where the time beyond the inference comes from, for people."""
    min_devices: int = 1
    """The quorum."""
    baseline: PlannedDevice | None = None
    """The baseline model on one device, if it was measured."""

    @property
    def all_devices(self) -> int:
        """The mask of all devices."""
        return (1 << len(self.devices)) - 1

    @property
    def images(self) -> int:
        """Of the trial; 1 where there is none."""
        return self.trial.images if self.trial is not None else 1

    @property
    def trial(self) -> Trial | None:
        """What subsets answer to validation images."""
        return self.calibration.trial if self.calibration is not None else None

    @property
    def has_power(self) -> bool:
        """Whether the joules of all devices are known."""
        return all(device.idle_w is not None and device.above_idle_j is not None for device in self.devices)

    def accuracy(self, mask: int) -> float:
        """Give the validation accuracy of a subset, 0 to 1.

        Raises:
            ManifestError: It was not measured.
        """
        if self.trial is not None:
            return self.trial.accuracy(mask)
        for subset in self.manifest.subsets:
            if subset.mask == mask:
                return subset.validation_accuracy
        raise ManifestError(f"subset {mask:#b}: its accuracy was not measured: make the bundle again with devit export")

    def right_share(self, outcome: Outcome) -> float:
        """Give the share of right answers among simulated frames."""
        if self.trial is not None:
            return _marked(self.trial, outcome, RIGHT)
        masks, counts = np.unique(outcome.masks, return_counts=True)
        shares = [self.accuracy(int(mask)) * count for mask, count in zip(masks, counts, strict=True)]
        return float(sum(shares) / counts.sum())

    def flip_share(self, outcome: Outcome) -> float | None:
        """Give the share of answers that differ from that of all devices; ``None`` where no trial says it."""
        return _marked(self.trial, outcome, FLIP) if self.trial is not None else None

    def certain(self, flips: float, confidence: float, tests: int) -> dict[int, BoolArray]:
        """Tell by mask for which images the answer of a subset is certain; empty where no trial says it."""
        calibration, trial = self.calibration, self.trial
        if calibration is None or trial is None:
            return {}
        scores = {mask: trial.scores[:, column].astype(np.float32) for column, mask in enumerate(trial.masks)}
        return {
            mask: own >= calibration.threshold(mask, flips=flips, confidence=confidence, tests=tests)
            for mask, own in scores.items()
            if mask != self.all_devices
        }


def cell_of(
    fleet: Fleet,
    manifest: Manifest,
    calibration: Calibration | None,
    profiles: Sequence[DeviceProfile],
    overhead_ms: float | None = None,
) -> Cell:
    """Join the files; a given ``overhead_ms`` takes the place of the measured one.

    Raises:
        InputError: A device has no profile, or two of the same model.
        ManifestError: A profile is of another bundle.
    """
    baseline = manifest.baseline
    for profile in profiles:
        check_fits(profile, [graph.macs for graph in manifest.submodels], baseline.macs if baseline else None)
    assumed_ms = _NODE_MS + 8 * float(np.prod(manifest.preprocess.shape)) / _LINK_BITS_PER_MS
    measured = [profile.overhead_ms for profile in profiles if profile.overhead_ms is not None]
    source = f"assumed: {_NODE_MS:g} ms, and the image over Gigabit Ethernet"
    if overhead_ms is not None:
        source = "given"
    elif measured:
        source = "measured"
    default_ms = overhead_ms if overhead_ms is not None else max(measured, default=assumed_ms)

    def planned(profile: DeviceProfile) -> PlannedDevice:
        own_ms = profile.overhead_ms if overhead_ms is None and profile.overhead_ms is not None else default_ms
        server = Server(np.asarray(profile.quantiles_ms), own_ms)
        return PlannedDevice(profile.device, server, profile.idle_w, profile.above_idle_j)

    devices = []
    for number in range(len(manifest.submodels)):
        name = next((device.name for device in fleet.device if device.submodel == number), None)
        if name is None:
            raise InputError(f"fleet: no device runs submodel {number} of the bundle: add a [[device]]")
        found = [profile for profile in profiles if profile.device == name and profile.model == number]
        if len(found) != 1:
            raise InputError(
                f"{name}: expected one profile of submodel {number}, found {len(found)}: "
                f"run devit bench-device there with --name {name} --submodel {number}"
            )
        devices.append(planned(found[0]))
    whole = [profile for profile in profiles if profile.model == "baseline"]
    return Cell(
        devices=tuple(devices),
        manifest=manifest,
        calibration=calibration,
        credit=fleet.serving.credit,
        extras_w=sum(extra.watts for extra in fleet.extra),
        overhead_from=source,
        min_devices=fleet.serving.min_devices,
        baseline=min(map(planned, whole), key=lambda each: each.server.mean_ms, default=None),
    )


def _marked(trial: Trial, outcome: Outcome, mark: int) -> float:
    found = 0
    for mask in np.unique(outcome.masks).tolist():
        rows = outcome.rows[outcome.masks == mask]
        found += int((trial.marks[rows, trial.column(mask)] & mark > 0).sum())
    return found / len(outcome.rows)
