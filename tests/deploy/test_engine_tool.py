"""The engines' role on one device: an engine that was copied takes the place of an older one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from devit_engines.building.store import Store

TOOL = Path(__file__).parents[2] / "deploy/roles/engines/files/engine_tool.py"


def tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_copied_engine_takes_the_place_of_one_with_another_verdict(store: Path, tmp_path: Path) -> None:
    """It has the same key, so that it was built from the same graph, but for other golden images."""
    there, here = Store(store), Store(tmp_path / "store")
    record = there.records()[0]
    _, content = there.read(record.key.digest)
    here.keep(msgspec.structs.replace(record, validated_against="0" * 64), content)
    draft = here.folder / f".{record.key.digest}.copied"
    shutil.copytree(there.folder / record.key.digest, draft)
    done = tool("take", draft, here.folder)
    assert (done.returncode, done.stdout) == (0, f"{record.title}: taken\n"), done.stderr
    assert here.read(record.key.digest) == (record, content)
    assert here.leftovers() == []


def test_a_copy_that_was_damaged_is_not_taken(store: Path, tmp_path: Path) -> None:
    record = Store(store).records()[0]
    draft = Path(shutil.copytree(store / record.key.digest, tmp_path / "draft"))
    (draft / record.file.name).write_bytes(b"half")
    done = tool("take", draft, tmp_path / "store")
    assert done.returncode == 1
    assert "expected sha256" in done.stderr
    assert Store(tmp_path / "store").entries() == []
