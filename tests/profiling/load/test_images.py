"""Pictures to send: files in order, or noise that is always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devit_contract.errors import InputError
from devit_profiling.load.images import load_pictures, random_pictures


def test_random_images_are_the_same_for_the_same_seed_and_say_so() -> None:
    first, second = random_pictures((6, 8, 1)), random_pictures((6, 8, 1))
    assert np.array_equal(np.stack(list(first)), np.stack(list(second)))  # type: ignore[arg-type]
    assert first.origin == "32 random images of 6 x 8 x 1 (noise, seed 0), ready for the graph"


def test_folder_gives_its_pictures_by_name_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    pictures = load_pictures([tmp_path])
    assert list(pictures) == [b"a.jpg", b"b.PNG"]
    assert pictures.origin == "2 picture files, decoded on the devices"


def test_missing_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lost\.png: cannot be read"):
        load_pictures([tmp_path / "lost.png"])
    with pytest.raises(InputError, match="expected picture files"):
        load_pictures([tmp_path])
