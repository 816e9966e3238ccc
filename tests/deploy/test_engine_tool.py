"""The engines' role on one device: an engine that was copied takes the place of an older one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.engines.int8 import with_int8

from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import build_engines, find_engine
from devit_engines.building.store import Store

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
TOOL = Path(__file__).parents[2] / "deploy/roles/engines/files/engine_tool.py"


def tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_copied_engine_takes_the_place_of_one_with_another_verdict(store: Path, tmp_path: Path) -> None:
    """It has the same key, so that it was built from the same graph, but for other golden images."""
    there, here = Store(store), Store(tmp_path / "store")
    record = there.records()[0]
    _, content = there.read(record.key.digest)
    here.keep(msgspec.structs.replace(record, validated_against=("0" * 64,)), content)
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


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with INT8, and a store that holds a choice of ``int8`` for submodel 0."""
    place = tmp_path_factory.mktemp("chosen")
    bundle = with_int8(Bundle(Path(shutil.copytree(TINY, place / "bundle"))), [0])
    build_engines(bundle, Store(place / "store"), submodels=[0], prefer="accuracy", backend="ort")
    (choice,) = (place / "store").glob("choice.*.json")
    words = {'"kept"': '"left"', '"left"': '"kept"'}
    choice.write_text(re.sub('"kept"|"left"', lambda found: words[found[0]], choice.read_text()))
    return place


def test_a_choice_that_the_reference_device_has_lost_is_forgotten(chosen: Path, tmp_path: Path) -> None:
    store = Store(Path(shutil.copytree(chosen / "store", tmp_path / "store")))
    keys = {record.key.variant: record.key.digest for record in store.records()}
    found = find_engine(Bundle(chosen / "bundle"), store, 0, backend="ort")
    assert found.key.digest == keys["int8"]
    for variant in ("int8", "fp32"):
        done = tool("check", chosen / "bundle", store.folder, "0", "ort", keys[variant])
        assert done.returncode == 0, done.stderr
        assert "golden images" in done.stdout
        assert find_engine(Bundle(chosen / "bundle"), store, 0, backend="ort").key.digest == keys[variant]


def test_another_engine_than_the_reference_devices_is_told(chosen: Path, tmp_path: Path) -> None:
    store = shutil.copytree(chosen / "store", tmp_path / "store")
    done = tool("check", chosen / "bundle", store, "0", "ort", "f" * 64)
    assert done.returncode == 1
    assert re.fullmatch(
        r"submodel 0: expected engine f{12} to be loaded, found \w{12}: remove .*, then roll out again\n", done.stderr
    )
