"""What a user may get wrong: one line that says what was expected and found, exit code 1, and nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store

RUN = "from devit_contract.service.terminal import run\nfrom devit_engines.cli import app\nrun(app, 'devit build')"


def build(*words: str | Path, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, "-c", RUN, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)


def rewrite(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    change(raw)
    (folder / "manifest.json").write_text(json.dumps(raw))


def replace_graph(folder: Path, content: bytes) -> None:
    """Put another file in the graph's place, its digest mended."""
    name = "submodel-0.fp32.onnx"
    (folder / name).write_bytes(content)

    def mend(raw: dict[str, object]) -> None:
        for file in raw["files"]:  # type: ignore[attr-defined]
            if file["name"] == name:
                file |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}

    rewrite(folder, mend)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda folder: (folder / "submodel-0.fp32.onnx").unlink(), "submodel-0.fp32.onnx: cannot be read"),
    "no bundle": (shutil.rmtree, "manifest.json: cannot be read"),
    "not an ONNX": (lambda folder: replace_graph(folder, b"no graph"), "expected an ONNX graph, found 8 bytes"),
    "digest mismatch": (
        lambda folder: (folder / "submodel-0.fp32.onnx").write_bytes(bytes(1582)),
        "submodel-0.fp32.onnx: expected sha256",
    ),
    "another size": (
        lambda folder: (folder / "submodel-0.fp32.onnx").write_bytes(b"other"),
        "submodel-0.fp32.onnx: expected 1582 bytes, found 5",
    ),
    "unknown schema": (lambda folder: rewrite(folder, lambda raw: raw.update(schema=99)), "schema"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
}


def assert_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert words in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("case", CASES)
def test_a_bundle_that_is_not_whole_is_refused_and_nothing_is_stored(tiny: Bundle, store: Store, case: str) -> None:
    spoil, words = CASES[case]
    spoil(tiny.folder)
    assert_refused(build(tiny.folder, "--store", store.folder), words)
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_an_unknown_submodel_is_refused(tiny: Bundle, store: Store) -> None:
    assert_refused(build(tiny.folder, "--submodels", "0,7", "--store", store.folder), "submodel 7: expected 0 to 1")
    assert not store.folder.exists()


def test_a_store_that_cannot_be_written_is_refused(tiny: Bundle, tmp_path: Path) -> None:
    """Not even root may make folders in /proc."""
    assert_refused(build(tiny.folder, "--store", "/proc/store"), "/proc/store: the store cannot be written")
    (tmp_path / "file").write_text("")
    assert_refused(build(tiny.folder, "--store", tmp_path / "file"), "cannot be written")


def test_a_file_that_finds_no_room_is_refused_and_leaves_no_half(tiny: Bundle, store: Store) -> None:
    """The kernel's limit on the size of files, which every user may set, stands in for the end of the disk."""
    assert_refused(build(tiny.folder, "--store", store.folder, limit_bytes=500), "cannot be written")
    assert store.entries() == []
    assert store.left_behind() == []


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_refused_and_leaves_no_half(tiny: Bundle, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let root mount a disk")
    try:
        assert_refused(build(tiny.folder, "--store", disk), "cannot be written")
        assert all(entry.damage is None for entry in Store(disk).entries())  # those that found room
        assert len(Store(disk).entries()) < 2
        assert Store(disk).left_behind() == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_engine_of_another_version_is_never_loaded(tiny: Bundle, store: Store) -> None:
    """The store names what it holds, and what this machine would need."""
    (built,) = build_engines(tiny, store, submodels=[0])
    record = json.loads((built.path / "engine.json").read_text())
    record["key"]["backend_version"] = "0.1"
    (built.path / "engine.json").write_text(json.dumps(record))
    done = subprocess.run(
        [sys.executable, "-c", RUN.replace("app", "engines_app"), "verify", "--store", str(store.folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "expected key" in done.stderr
