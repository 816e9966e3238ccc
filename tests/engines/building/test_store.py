"""The store: keys, damage, and what is read back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import ANY

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.artefacts.gate import AccuracyResult
from devit_contract.errors import EngineError, InputError, NotBuiltError
from devit_engines.building.store import (
    SCHEMA,
    EngineFile,
    EngineKey,
    EngineRecord,
    Entry,
    Latency,
    Store,
    default_folder,
)

CONTENT = bytes(range(200))
KEY = EngineKey("ab" * 32, "ort", "1.23.2", "NVIDIA Jetson Orin Nano Developer Kit", "sm_87", "fp32", ())
ACCURACY = AccuracyResult(64, 0, 0.9999, 1.0, 1e-6, 1e-5, 0, 0, 0.2, 3 / 64)
RECORD = EngineRecord(
    schema=SCHEMA,
    title="submodel 0 of tiny",
    key=KEY,
    file=EngineFile("model.onnx", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)),
    build_s=0.5,
    accuracy=ACCURACY,
    validated_against=("cd" * 32,),
    created="2026-01-31T12:00:00Z",
    latency=Latency(1.5, 2.25, 200, ("threads=1",)),
)


def test_the_digest_of_a_key_never_changes() -> None:
    """Written out: another digest for the same key would make every device build its store again."""
    written = (
        '{"model_sha256":"' + "ab" * 32 + '","backend":"ort","backend_version":"1.23.2",'
        '"device_name":"NVIDIA Jetson Orin Nano Developer Kit","compute_capability":"sm_87",'
        '"variant":"fp32","options":[]}'
    )
    assert KEY.digest == hashlib.sha256(written.encode()).hexdigest()
    assert KEY.digest.startswith("93e1e642")
    assert KEY.revision == 0x93E1E642


def test_a_file_is_no_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_text("")
    with pytest.raises(InputError, match="expected a folder of engines, found a file"):
        Store(path).entries()


@pytest.mark.parametrize("field", EngineKey.__struct_fields__)
def test_every_field_of_the_key_makes_another_engine(field: str) -> None:
    other = msgspec.structs.replace(KEY, **{field: ("opt=1",) if field == "options" else "other"})
    assert other.digest != KEY.digest
    assert other.revision != KEY.revision


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_text_that_moves_from_one_field_to_the_next_makes_another_key(a: str, b: str, c: str, d: str) -> None:
    keys = [EngineKey("00", left, right, "x", "cpu", "fp32", ()) for left, right in ((a, b), (c, d))]
    assert (keys[0].digest == keys[1].digest) == ((a, b) == (c, d))


def test_what_was_kept_is_read_back(store: Store) -> None:
    folder = store.keep(RECORD, CONTENT)
    assert folder == store.folder / KEY.digest
    assert store.read(KEY.digest) == (RECORD, CONTENT)
    (entry,) = store.entries()
    assert (entry.record, entry.damage) == (RECORD, None)


def test_the_l4t_release_is_kept_or_absent(store: Store) -> None:
    folder = store.keep(RECORD, CONTENT)
    assert "l4t" not in (folder / "engine.json").read_text()
    jetson = msgspec.structs.replace(RECORD, l4t="36.4.3")
    store.keep(jetson, CONTENT)
    assert store.read(KEY.digest)[0].l4t == "36.4.3"


def test_an_absent_key_is_none_to_find_and_an_error_to_read(store: Store) -> None:
    assert store.find(KEY.digest) is None
    assert store.entries() == []
    with pytest.raises(NotBuiltError, match="run this"):
        store.read(KEY.digest, "run this")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one engine, whose files the tests below damage one way after the other."""
    store = Store(tmp_path_factory.mktemp("store"))
    store.keep(RECORD, CONTENT)
    return store


@contextlib.contextmanager
def flipped(path: Path, place: int) -> Iterator[None]:
    """Flip one bit of a file; ``place`` is taken modulo the file's bits. The file is whole again behind the block."""
    whole = path.read_bytes()
    broken = bytearray(whole)
    bit = place % (len(whole) * 8)
    broken[bit // 8] ^= 1 << bit % 8
    path.write_bytes(broken)
    try:
        yield
    finally:
        path.write_bytes(whole)


@settings(deadline=None)
@given(st.integers(0, len(CONTENT) * 8 - 1))
def test_any_flipped_bit_of_the_engine_is_found(kept: Store, place: int) -> None:
    with flipped(kept.folder / KEY.digest / "model.onnx", place):
        entry = kept.find(KEY.digest)
        assert entry is not None
        assert entry.damage is not None
        assert "expected sha256" in entry.damage
        with pytest.raises(NotBuiltError, match="expected sha256"):
            kept.read(KEY.digest)


@examples(4)
@given(st.integers(0, 1 << 14))
def test_a_flipped_bit_of_the_record_is_an_error_or_the_same_engine(kept: Store, place: int) -> None:
    """The record names the engine's digest: damaged, it may lie about a figure, but not load other bytes."""
    with flipped(kept.folder / KEY.digest / "engine.json", place), contextlib.suppress(EngineError):
        record, content = kept.read(KEY.digest)
        assert content == CONTENT
        assert record.key == KEY


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_record_that_was_cut_short_is_damage(kept: Store, length: int) -> None:
    path = kept.folder / KEY.digest / "engine.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: length % (len(whole) - 2)])
    try:
        entry = kept.find(KEY.digest)
    finally:
        path.write_bytes(whole)
    assert entry is not None
    assert entry.damage is not None
    assert entry.record is None


def test_a_record_cannot_lead_out_of_its_folder(store: Store) -> None:
    path = store.keep(RECORD, CONTENT) / "engine.json"
    path.write_text(path.read_text().replace('"model.onnx"', '"../../model.onnx"'))
    with pytest.raises(EngineError, match="plain file name"):
        store.read(KEY.digest)


def test_an_engine_under_the_name_of_another_key_is_refused(store: Store) -> None:
    """A folder that was copied by hand from another device must not pass for this device's engine."""
    folder = store.keep(RECORD, CONTENT)
    other = "0" * 64
    folder.rename(store.folder / other)
    with pytest.raises(EngineError, match=f"expected key {other[:12]}, found {KEY.digest[:12]}"):
        store.read(other)


WRITER = """
import sys
from pathlib import Path
from tests.engines.building.test_store import engine_of
from devit_engines.building.store import Store
store = Store(Path(sys.argv[1]))
for number in range(150):
    store.keep(*engine_of(number))
"""


def engine_of(number: int) -> tuple[EngineRecord, bytes]:
    """Make one of many engines of the same key."""
    content = bytes([number]) * 100_000
    file = EngineFile("model.onnx", hashlib.sha256(content).hexdigest(), len(content))
    return msgspec.structs.replace(RECORD, file=file), content


def test_whoever_reads_an_engine_that_is_being_replaced_gets_the_old_one_or_the_new_one_whole(store: Store) -> None:
    store.keep(*engine_of(0))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(store.folder)], env=environment) as writer:
        seen = set()
        while writer.poll() is None:
            record, content = store.read(KEY.digest)
            assert (record, content) == engine_of(content[0])
            assert store.find(KEY.digest) == Entry(KEY.digest, store.folder / KEY.digest, ANY, None)
            seen.add(content[0])
    assert writer.returncode == 0
    assert len(seen) > 1


def test_a_lock_waits_for_nobody_where_nobody_builds(store: Store) -> None:
    waits: list[str] = []
    with store.lock(KEY.digest, lambda: waits.append("waited")), store.lock("1" * 64, lambda: waits.append("waited")):
        pass
    assert waits == []


def test_a_store_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    place = tmp_path / "store"
    place.write_text("")
    with pytest.raises(InputError, match="choose another with --store"), Store(place).lock(KEY.digest):
        pass


@pytest.mark.parametrize(("cache", "is_used"), [("/var/cache", True), ("relative", False), ("", False)])
def test_the_default_place_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch, cache: str, is_used: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", "/home/someone")
    expected = "/var/cache/devit/engines" if is_used else "/home/someone/.cache/devit/engines"
    assert default_folder() == Path(expected)


def test_a_services_store_lies_in_its_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/devit:/var/lib/other")
    assert default_folder() == Path("/var/lib/devit/engines")


@pytest.mark.parametrize(("mode", "expected"), [(0o2775, 0o2775), (0o755, 0o755), (0o775, 0o755), (0o2755, 0o755)])
def test_what_is_kept_in_a_store_that_a_group_shares_is_the_groups_too(
    tmp_path: Path, mode: int, expected: int
) -> None:
    """Else nobody but its builder could replace or prune an engine."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    kept = Store(tmp_path / "shared").keep(RECORD, CONTENT)
    assert kept.stat().st_mode & 0o7777 == expected


def test_of_many_that_want_one_lock_only_one_has_it_and_no_file_stays(store: Store) -> None:
    """Whoever lets go removes the file, on which others may wait already."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(60):
            with store.lock(KEY.digest):
                inside.append(number)
                os.sched_yield()
                most.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert (len(most), max(most)) == (480, 1)
    assert list((store.folder / "locks").iterdir()) == []
