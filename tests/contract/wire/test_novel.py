"""Pictures of novel images are copied, others are not, and what stops that is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from devit_contract.errors import InputError
from devit_contract.wire.novel import keep_novel


def picture(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(str(path).encode())
    return path


def test_novel_pictures_are_copied_with_their_novelty_and_their_folders_name(tmp_path: Path) -> None:
    """Two folders may hold files of the same name."""
    monday, tuesday = picture(tmp_path / "monday", "a.png"), picture(tmp_path / "tuesday", "a.png")
    usual = picture(tmp_path / "monday", "b.png")
    found = [(monday, 0.9951), (tuesday, 0.9951), (usual, 0.98), (usual, None)]
    kept = keep_novel(found, tmp_path / "kept")
    assert [path.name for path in kept] == ["0.9951-monday-a.png", "0.9951-tuesday-a.png"]
    assert sorted((tmp_path / "kept").iterdir()) == sorted(kept)
    assert kept[1].read_bytes() == tuesday.read_bytes()


def test_a_node_that_tells_no_novelty_is_no_cell_without_novel_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no answer has a novelty"):
        keep_novel([(picture(tmp_path, "a.png"), None)], tmp_path / "kept")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = picture(tmp_path, "file")
    with pytest.raises(InputError, match=r"file/.*cannot be written .*give another --keep-novel"):
        keep_novel([(picture(tmp_path, "a.png"), 1.0)], blocked)
