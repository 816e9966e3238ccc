"""Keep one finished row: its decomposition.json, and which test images the fused cell answers rightly.

python benchmarks/accuracy/collect.py MODELS ROW
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

from devit_contract.artefacts.head import Fusion
from devit_decompose.data.dataset import load_dataset
from devit_decompose.evaluation.evaluate import load_cell
from devit_decompose.models_folder.decomposition import load_decomposition
from devit_decompose.models_folder.subset_accuracy import joined_features

RESULTS = Path(__file__).parent / "results"


def collect(models: Path, row: str) -> None:
    """Write ``results/ROW.json``."""
    torch.set_num_threads(1)
    found = load_decomposition(models)
    if found.recipe is None:
        raise SystemExit(f"{models}: expected models that devit decompose made")
    test = load_dataset(found.recipe.data).test
    cell = load_cell(models)
    features = joined_features(cell.submodels, test.images)
    answers = Fusion(cell.head).batch_logits(features, cell.head.all_devices).argmax(axis=1)
    content = json.loads((models / "decomposition.json").read_bytes())
    right = np.packbits(answers == test.labels)
    content["right"] = base64.b64encode(zlib.compress(right.tobytes(), 9)).decode()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{row}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(row, f"{np.mean(answers == test.labels):.2%}")  # noqa: T201 - a script's output


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2])
