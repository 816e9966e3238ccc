"""Keeps the picture files whose images a cell finds novel, for the next training."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from devit_contract.errors import InputError

NOVEL = 0.99
"""From here on an image is kept: one in a hundred like those of the validation part is."""


def keep_novel(found: Iterable[tuple[Path, float | None]], folder: Path) -> list[Path]:
    """Copy the files of novel images to a folder, the novelty before their names; an older copy is replaced.

    Raises:
        InputError: A file cannot be copied, or no answer has a novelty.
    """
    known = [(path, novelty) for path, novelty in found if novelty is not None]
    if not known:
        raise InputError("no answer has a novelty: the node's bundle needs a calibration, and liars must not be off")
    kept = []
    for path, novelty in known:
        if novelty >= NOVEL:
            target = folder / f"{novelty:.4f}-{path.absolute().parent.name}-{path.name}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            except OSError as err:
                raise InputError(f"{target}: cannot be written ({err.strerror}): give another --keep-novel") from err
            kept.append(target)
    return kept
