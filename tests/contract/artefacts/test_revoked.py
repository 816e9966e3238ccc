"""Revoked keys: what is in the file is out of the fleet, and no damage to the file lets anybody in again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples
from zmq.utils import z85

from devit_contract.artefacts.revoked import RevokedKeys, restore, revoke, revoked_path
from devit_contract.errors import InputError

A, B, C = (z85.encode(bytes([number]) * 32) for number in (1, 2, 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "revoked_keys"


def line(key: bytes, name: str = "jetson1") -> bytes:
    return key + f" {name} 2026-11-24\n".encode()


def test_the_file_lies_beside_the_fleets() -> None:
    assert revoked_path(Path("/etc/devit/fleet.toml")) == Path("/etc/devit/revoked_keys")


def test_without_a_file_nothing_is_revoked(path: Path) -> None:
    found = RevokedKeys(path)
    assert (found.keys, found.refresh(), found.problem) == (frozenset(), frozenset(), "")


def test_the_file_is_text_of_one_line_a_key_under_a_seal(path: Path) -> None:
    """Golden bytes: other versions read them, and so do people."""
    before = datetime.now(timezone.utc).date().isoformat()
    assert revoke(path, b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "jetson1")
    seal, introduction, written = path.read_bytes().splitlines(keepends=True)
    assert introduction.startswith(b"# Keys that the fusion node refuses")
    assert written.startswith(b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7 jetson1 ")
    assert written[49:].decode() in (f"{before}\n", f"{datetime.now(timezone.utc).date().isoformat()}\n")
    assert seal == b"# sealed by devit keys revoke, crc32 %08x\n" % zlib.crc32(introduction + written)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_key_is_revoked_once_and_let_in_again_once(path: Path) -> None:
    assert [revoke(path, A, "jetson1"), revoke(path, B, "jetson2")] == [True, True]
    written = path.read_bytes()
    assert not revoke(path, A, "jetson1")
    assert path.read_bytes() == written
    assert RevokedKeys(path).keys == {A, B}
    assert [restore(path, A), restore(path, A), restore(path, C)] == [True, False, False]
    assert RevokedKeys(path).keys == {B}


def test_what_people_wrote_into_the_file_stays(path: Path) -> None:
    path.write_bytes(b"# stolen in May\n" + line(A) + b"\n#\n" + line(B))
    revoke(path, C, "jetson3")
    restore(path, A)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[1:5] == [b"# stolen in May\n", b"\n", b"#\n", line(B)]
    assert RevokedKeys(path).keys == {B, C}


def test_a_running_node_learns_of_each_key_once(path: Path) -> None:
    found = RevokedKeys(path)
    revoke(path, A, "jetson1")
    assert (found.refresh(), found.refresh()) == ({A}, frozenset())
    revoke(path, B, "jetson2")
    revoke(path, C, "jetson3")
    assert (found.refresh(), found.refresh()) == ({B, C}, frozenset())
    assert found.keys == {A, B, C}
    assert found.problem == ""


def test_a_line_taken_out_lets_the_key_in_and_its_return_is_news(path: Path) -> None:
    for key in (A, B):
        revoke(path, key, "jetson1")
    found = RevokedKeys(path)
    restore(path, A)
    assert (found.refresh(), found.keys, found.problem) == (frozenset(), {B}, "")
    restore(path, B)
    assert (found.refresh(), found.keys, found.problem) == (frozenset(), frozenset(), "")
    revoke(path, A, "jetson1")
    assert (found.refresh(), found.keys) == ({A}, {A})


def test_a_file_without_a_seal_is_edited_by_hand(path: Path) -> None:
    path.write_bytes(line(A) + line(B))
    found = RevokedKeys(path)
    path.write_bytes(line(B) + line(C))
    assert (found.refresh(), found.keys, found.problem) == ({C}, {B, C}, "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hunter2\n", "line 1: expected a key, its name and a day"),
        (line(A) + A + b" jetson1\n", "line 2: expected a key, its name and a day"),
        (line(A) + line(b"#" + A[1:]), "line 2: expected"),
        (line(b"#" * 40), "line 1: expected"),
        (line(A, "Jetson 1"), "line 1: expected"),
        (line(A).replace(b"\n", b"\r\n"), "line 1: expected"),
        (line(A)[:-1], "expected a line feed at its end, found none, as if it was cut off"),
        (b"# sealed by devit keys revoke, crc32 00000000\n" + line(A), "expected the lines that its seal was made for"),
        (b"\0" * 4096, "line 1: expected"),
        (b"\n" * (1 << 20) + b"\n", "expected at most 1048576 bytes"),
    ],
)
def test_a_node_does_not_start_on_a_broken_file_and_a_command_leaves_it_as_it_is(
    path: Path, content: bytes, said: str
) -> None:
    path.write_bytes(content)
    for use in (lambda: RevokedKeys(path), lambda: revoke(path, C, "jetson3"), lambda: restore(path, A)):
        with pytest.raises(InputError, match=re.escape(f"{path}: {said}")) as error:
            use()
        assert "\n" not in str(error.value)
        assert "put back a copy of it, or mend it and delete the seal" in str(error.value)
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(InputError, match="expected a file, found something else"):
        RevokedKeys(path)
    path.unlink()
    revoke(path, A, "jetson1")
    found = RevokedKeys(path)
    path.unlink()
    path.mkdir()
    assert (found.refresh(), found.keys) == (frozenset(), {A})
    assert "expected a file, found something else" in found.problem


def test_valid_lines_of_a_damaged_file_count_and_the_damage_is_told_once(path: Path) -> None:
    for key in (A, B):
        revoke(path, key, "jetson1")
    found = RevokedKeys(path)
    path.write_bytes(b"\xff\xfe\n" + line(B) + line(C))
    assert (found.refresh(), found.keys) == ({C}, {A, B, C})
    assert f"{path}: line 1: expected a key" in found.problem
    assert (found.refresh(), found.problem) == (frozenset(), "")
    path.write_bytes(b"garbage")
    assert (found.refresh(), found.keys) == (frozenset(), {A, B, C})
    assert found.problem == ""  # line 1 again
    path.unlink()
    revoke(path, A, "jetson1")
    assert (found.refresh(), found.keys, found.problem) == (frozenset(), {A}, "")
    path.write_bytes(b"garbage")
    found.refresh()
    assert "line 1" in found.problem


@pytest.mark.parametrize("loss", ["gone", "empty", "only comments", "a line and the seal"])
def test_a_sealed_file_that_has_lost_keys_and_its_seal_lets_nobody_in(path: Path, loss: str) -> None:
    for key in (A, B):
        revoke(path, key, "jetson1")
    found = RevokedKeys(path)
    left = {"empty": b"", "only comments": b"# nothing\n", "a line and the seal": line(B)}
    path.unlink()
    if loss != "gone":
        path.write_bytes(left[loss])
    assert (found.refresh(), found.keys) == (frozenset(), {A, B})
    assert "expected the seal of devit keys revoke, found" in found.problem


def test_a_damaged_seal_does_not_open_the_way_to_a_second_damage(path: Path) -> None:
    revoke(path, A, "jetson1")
    found = RevokedKeys(path)
    path.write_bytes(path.read_bytes().replace(b"sealed", b"sealEd"))
    assert (found.refresh(), found.keys, found.problem) == (frozenset(), {A}, "")
    path.write_bytes(b"# nothing\n")
    assert (found.refresh(), found.keys) == (frozenset(), {A})
    assert found.problem


def test_a_hand_written_file_that_is_gone_or_emptied_lets_nobody_in(path: Path) -> None:
    path.write_bytes(line(A))
    found = RevokedKeys(path)
    for spoil in (lambda: path.write_bytes(b""), path.unlink):
        spoil()
        assert (found.refresh(), found.keys) == (frozenset(), {A})
    assert RevokedKeys(path).keys == frozenset()  # a start is a new beginning


@st.composite
def damages(draw: st.DrawFn) -> tuple[float, float, bytes]:
    """A slice, from and to as parts of the file, and what stands there instead."""
    start, end = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    if draw(st.booleans()):
        end = start
    text = st.sampled_from([b"", b"\n", b"# ", b"\0" * 64, line(C), b"# sealed by devit keys revoke, crc32 00000000\n"])
    return start, end, draw(st.binary(max_size=20) | text)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of three keys."""
    path = tmp_path_factory.mktemp("sealed") / "revoked_keys"
    for key in (A, B, C):
        revoke(path, key, "jetson1")
    return path.read_bytes()


@examples(3)
@given(hits=st.lists(damages(), min_size=1, max_size=4))
def test_random_damage_never_lets_a_key_in_again(sealed: bytes, hits: list[tuple[float, float, bytes]]) -> None:
    """In place, without a new inode, and one after the other, as a failing disk or a careless copy does it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "revoked_keys"
        path.write_bytes(sealed)
        found = RevokedKeys(path)
        for start, end, text in hits:
            content = path.read_bytes()
            path.write_bytes(content[: round(start * len(content))] + text + content[round(end * len(content)) :])
            found.refresh()
            assert found.keys >= {A, B, C}


def test_every_single_changed_byte_and_every_cut_is_survived(path: Path) -> None:
    """Each place of a small file, exhaustively, with what is most like something else."""
    for key in (A, B):
        revoke(path, key, "jetson1")
    whole = path.read_bytes()
    found = RevokedKeys(path)
    for place in range(len(whole)):
        for text in (b"\n", b"#", b" ", b"1", b"\0", b""):
            path.write_bytes(whole[:place] + text + whole[place + 1 :])
            found.refresh()
            assert found.keys >= {A, B}, (place, text)
        path.write_bytes(whole[:place])
        found.refresh()
        assert found.keys >= {A, B}, place
    path.write_bytes(whole)
    found.refresh()
    assert (found.keys, RevokedKeys(path).keys) == ({A, B}, {A, B})


def test_a_change_within_one_tick_of_the_clock_is_seen(path: Path) -> None:
    """The same size, inode and time stamp: a recent stamp is not trusted."""
    path.write_bytes(line(A))
    found = RevokedKeys(path)
    before = path.stat()
    path.write_bytes(line(B))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert (found.refresh(), found.keys) == ({B}, {B})


def test_an_unchanged_file_costs_one_look_and_is_not_opened(path: Path) -> None:
    """Every system call is real; the interpreter's audit hook counts the files that are opened."""
    revoke(path, A, "jetson1")
    os.utime(path, (0, 0))
    code = """
import sys, time
from pathlib import Path
from devit_contract.artefacts.revoked import RevokedKeys
found = RevokedKeys(Path(sys.argv[1]))
opened = []
sys.addaudithook(lambda event, words: opened.append(words[0]) if event == "open" else None)
start = time.perf_counter()
for _ in range(1000):
    assert not found.refresh()
print((time.perf_counter() - start) * 1000)
assert opened == [], opened
import os
os.utime(sys.argv[1], (1, 1))
found.refresh()
assert len(opened) == 1, opened
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True)
    print(f"refresh of an unchanged file: {float(done.stdout):.1f} us")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads everything: go on as somebody who does not."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_file_that_the_node_may_not_read_revokes_no_less() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "revoked_keys"
        revoke(path, A, "jetson1")
        path.parent.chmod(0o755)
        with as_nobody():
            found = RevokedKeys(path)
        path.chmod(0)
        said = f"{path}: cannot be read (Permission denied): let the node read it"
        with as_nobody():
            assert (found.refresh(), found.keys, found.problem) == (frozenset(), {A}, said)
            with pytest.raises(InputError, match=re.escape(said)):
                RevokedKeys(path)
        path.chmod(0o644)
        path.parent.chmod(0)
        with as_nobody():
            assert (found.refresh(), found.keys, found.problem) == (frozenset(), {A}, "")
        path.parent.chmod(0o755)
        with as_nobody():
            assert (found.refresh(), found.keys, found.problem) == (frozenset(), {A}, "")


def test_two_who_revoke_at_once_lose_no_line(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from devit_contract.artefacts.revoked import revoke\n"
        "for key in sys.argv[2:]: revoke(Path(sys.argv[1]), key.encode(), 'jetson1')"
    )
    keys = [z85.encode(number.to_bytes(4, "big") * 8) for number in range(60)]
    halves = (keys[::2], keys[1::2])
    writers = [subprocess.Popen([sys.executable, "-c", code, path, *(key.decode() for key in half)]) for half in halves]
    found, deadline = RevokedKeys(path), time.monotonic() + 60
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        found.refresh()
        assert found.problem == ""
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found.refresh()
    assert found.keys == set(keys)
