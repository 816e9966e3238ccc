"""Gives a finished models folder its calibration and its images for INT8, without training again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from devit_contract.service.progress import Progress
from devit_decompose.evaluation.evaluate import data_of, load_cell
from devit_decompose.models_folder.calibration import CALIBRATION_NAME, add_calibration
from devit_decompose.models_folder.subset_accuracy import joined_features


class Calibrated(msgspec.Struct, frozen=True):
    """What a models folder was given."""

    name: str
    file: str
    validation_images: int
    is_stored_validation_set: bool
    """Whether these are the validation images of decomposition.json."""


def calibrate_models(models: Path, *, data: Path | None, progress: Progress) -> Calibrated:
    """Calibrate a models folder on its validation images, in ``data`` or where the training had them.

    What is there is replaced; the folder has new files and their entries in ``decomposition.json``, or neither.

    Raises:
        InputError: A file cannot be read, or the folder cannot be written.
        ManifestError: The models folder breaks its format or a digest.
    """
    cell, validation = load_cell(models), data_of(models, data).validation
    progress("calibrating", 0, 2, "submodels")
    features = joined_features(cell.submodels, validation.images)
    progress("calibrating", 1, 2, "subsets of devices")
    calibration = add_calibration(models, cell.decomposition, features, validation)
    progress("calibrating", 2, 2)
    return Calibrated(
        name=cell.decomposition.name,
        file=CALIBRATION_NAME,
        validation_images=calibration.images,
        is_stored_validation_set=validation.digest() == cell.decomposition.data.validation_sha256,
    )
