"""The calibration of a models folder: which answers of some devices alone are certain."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from devit_contract.arrays import Float32Array, Int64Array
from devit_contract.artefacts.calibration import Calibration, calibrate
from devit_contract.artefacts.file_list import FileEntry, describe_file
from devit_contract.artefacts.files import new_folder, read_tensors, write_json
from devit_contract.artefacts.head import FusionHead
from devit_decompose.data.dataset import Split
from devit_decompose.models_folder.decomposition import FILE_NAME, Decomposition
from devit_decompose.models_folder.quantization import write_quantization

CALIBRATION_NAME = "calibration.safetensors"
_HINT = "make the models again with devit decompose"


def write_calibration(
    folder: Path, fusion_name: str, features: Float32Array, labels: Int64Array
) -> tuple[Calibration, FileEntry]:
    """Write ``calibration.safetensors``, from the validation part's features ``(n, sum of dims)`` and labels ``(n,)``.

    The head is read from its file, which holds fewer digits than training had: the node will have those.
    """
    calibration = calibrate(FusionHead.load(folder / fusion_name), features, labels)
    calibration.save(folder / CALIBRATION_NAME)
    return calibration, describe_file(folder, CALIBRATION_NAME, "calibration")


def add_calibration(
    models: Path, decomposition: Decomposition, features: Float32Array, validation: Split
) -> Calibration:
    """Give a finished models folder its calibration and its images for INT8, or new ones, all or nothing.

    Features ``(n, sum of dims)`` are those of the validation part.

    Raises:
        InputError: The folder, or a copy beside it, cannot be written.
    """
    with new_folder(models.resolve()) as folder:
        for path in models.rglob("*"):  # not copytree, whose errors do not say why
            target = folder / path.relative_to(models)
            target.mkdir() if path.is_dir() else shutil.copy2(path, target)
        calibration, entry = write_calibration(folder, decomposition.file("fusion").name, features, validation.labels)
        golden = read_tensors(folder / decomposition.file("samples").name, _HINT)["images"]
        added = (entry, *write_quantization(folder, validation, golden))
        others = tuple(file for file in decomposition.files if file.role not in ("calibration", "quantization"))
        write_json(folder / FILE_NAME, msgspec.structs.replace(decomposition, files=(*others, *added)))
    return calibration
