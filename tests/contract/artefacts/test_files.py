"""Files are whole or absent, and what is wrong in one is said by file, field, expected and found."""

from __future__ import annotations

import resource
import stat
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devit_contract.artefacts import files
from devit_contract.artefacts.files import (
    Tensors,
    check_replaceable,
    exclusive_lock,
    make_folder,
    new_folder,
    read_json,
    read_tensors,
    read_toml,
    sha256_of_file,
    write_bytes,
    write_json,
    write_tensors,
)
from devit_contract.errors import DevitError, InputError, ManifestError


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int


class Thing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    parts: tuple[Part, ...]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def message_of(error: pytest.ExceptionInfo[DevitError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_written_bytes_and_permissions_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_bytes(path, b"content", mode=0o640)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sha256_of_file(path) == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


def test_a_replaced_file_takes_the_new_mode_not_the_old_one(tmp_path: Path) -> None:
    """A secret written over a public file must not stay readable."""
    path = tmp_path / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new", mode=0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)


def test_a_write_that_cannot_end_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    """The target's name belongs to a folder, so the last step, the rename, fails."""
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(InputError, match="cannot be written") as error:
        write_bytes(path, b"new")
    assert str(path) in message_of(error)
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_one_line_and_leaves_old_content_whole(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write half way, as a full disk would."""
    path, folder = tmp_path / "file", tmp_path / "folder"
    write_bytes(path, b"old")
    with new_folder(folder) as draft:
        (draft / "part").write_bytes(b"old")
    code = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from devit_contract.errors import InputError
from devit_contract.artefacts.files import new_folder, write_bytes
def in_place(): write_bytes(Path(sys.argv[1]), bytes(1 << 20))
def in_folder():
    with new_folder(Path(sys.argv[2])) as draft:
        (draft / "part").write_bytes(bytes(1 << 20))
for write in (in_place, in_folder):
    try:
        write()
    except InputError as err:
        print(err)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )
    assert done.stdout.splitlines() == [
        f"{path}: cannot be written: File too large",
        f"{folder}: cannot be written: File too large",
    ], done.stderr
    assert (path.read_bytes(), (folder / "part").read_bytes()) == (b"old", b"old")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_takes_its_name_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with new_folder(path) as draft:
        (draft / "part").write_text("x")
        assert not path.exists()
    assert names(tmp_path) == ["folder"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_replaced_folder_holds_nothing_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with new_folder(path) as draft:
            (draft / name).write_text(name)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


READER = """
import os, sys
from pathlib import Path
path, misses = Path(sys.argv[1]), 0
print("ready", flush=True)
os.set_blocking(0, False)
while sys.stdin.buffer.read(1) != b"":  # until standard input is closed
    misses += not path.exists()
print(misses)
"""


def test_a_reader_finds_a_folder_that_is_replaced_all_the_time(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with new_folder(path) as draft:
        (draft / "part").touch()
    command = [sys.executable, "-c", READER, str(path / "part")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for _ in range(1000):
            with new_folder(path) as draft:
                (draft / "part").touch()
        found, _ = reader.communicate(timeout=30)
    assert found == "0\n"
    assert names(tmp_path) == ["folder"]


def test_where_names_cannot_be_exchanged_a_folder_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    for name in ("old", "new"):
        with new_folder(tmp_path / "folder") as draft:
            (draft / name).touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


@pytest.mark.parametrize("kind", ["folder", "file", "new file"])
def test_a_lock_keeps_others_out_until_its_block_ends(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    if kind == "file":
        path.touch(0o444)
    busy = InputError("somebody has it")
    with exclusive_lock(path), pytest.raises(InputError, match="somebody has it"), exclusive_lock(path, busy=busy):
        pass
    with exclusive_lock(path, busy=busy):
        pass


def test_a_lock_that_another_holds_is_waited_for(tmp_path: Path) -> None:
    waits, order = threading.Event(), []

    def second() -> None:
        with exclusive_lock(tmp_path, on_wait=waits.set):
            order.append("second")

    with ThreadPoolExecutor(1) as pool, exclusive_lock(tmp_path):
        done = pool.submit(second)
        assert waits.wait(30)
        order.append("first")
    done.result(30)
    assert order == ["first", "second"]


def test_a_lock_in_a_folder_that_is_absent_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened: No such file"), exclusive_lock(tmp_path / "none" / "lock"):
        pass


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_in_the_block_leaves_the_old_folder_whole_and_no_draft(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    path = tmp_path / "folder"
    with new_folder(path) as draft:
        (draft / "old").write_text("old")

    def fail() -> None:
        with new_folder(path) as draft:
            (draft / "new").write_text("new")
            raise kind

    with pytest.raises(InputError if kind is OSError else kind):
        fail()
    assert (names(tmp_path), names(path)) == (["folder"], ["old"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a JSON file"),
        (b"schema = 1", "not a JSON file"),
        (b'{"schema": 1, "parts": ["\xff"]}', "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"[]", "field schema: expected 1, found None"),
        (b'{"parts": []}', "field schema: expected 1, found None"),
        (b'{"schema": 2, "parts": []}', "field schema: expected 1, found 2"),
        (b'{"schema": "1", "parts": []}', "field schema: expected 1, found '1'"),
        (b'{"schema": 1}', "field (top level): Object missing required field `parts`"),
        (b'{"schema": 1, "parts": [{"size": 1}, {"size": "2"}]}', "field parts[1].size: Expected `int`, got `str`"),
        (b'{"schema": 1, "parts": [], "more": 0}', "field (top level): Object contains unknown field `more`"),
    ],
)
def test_a_json_file_that_breaks_its_format_is_named_with_field_expected_and_found(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "thing.json"
    path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        read_json(path, Thing, schema=1, hint="make it again")
    text = message_of(error)
    assert text.startswith(f"{path}: ")
    assert said in text
    assert text.endswith(": make it again")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not a TOML file"),
        (b'name = "\xff"', "not a TOML file"),
        (b"name = " + b"[" * 5000 + b"]" * 5000, "not a TOML file"),
        (b"schema = 3", "field schema: expected 1, found 3"),
        (b"schema = 1\n[[parts]]\nsize = 1.5", "field parts[0].size: Expected `int`, got `float`"),
    ],
)
def test_a_toml_file_that_breaks_its_format_is_named_likewise(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "thing.toml"
    path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        read_toml(path, Thing, schema=1, hint="see the example")
    assert said in message_of(error)
    assert str(error.value).startswith(f"{path}: ")


def test_a_toml_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Windows writes it."""
    path = tmp_path / "thing.toml"
    path.write_bytes(b"\xef\xbb\xbfschema = 1\r\nparts = []\r\n")
    assert read_toml(path, Thing, schema=1, hint="see the example") == Thing(1, ())


def test_a_missing_file_is_named_with_what_to_run_next(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    for read in (
        lambda: read_json(path, Thing, schema=1, hint="run this"),
        lambda: read_toml(path, Thing, schema=1, hint="run this"),
        lambda: read_tensors(path, "run this"),
    ):
        with pytest.raises(InputError) as error:
            read()
        assert message_of(error) == f"{path}: cannot be read (No such file or directory): run this"
    with pytest.raises(InputError, match="No such file"):
        sha256_of_file(path)


def test_a_struct_written_as_json_is_read_back_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    thing = Thing(1, (Part(2), Part(3)))
    write_json(tmp_path / "a", thing)
    write_json(tmp_path / "b", read_json(tmp_path / "a", Thing, schema=1, hint=""))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "b", Thing, schema=1, hint="") == thing


def test_tensors_are_read_back_whatever_their_memory_order(tmp_path: Path) -> None:
    tensors: Tensors = {
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "strided": np.arange(10, dtype=np.int64)[::3],
        "number": np.array(7.0),
    }
    write_tensors(tmp_path / "t", tensors)
    found = read_tensors(tmp_path / "t", "")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(20),
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60) + bytes(4),
        struct.pack("<Q", 60) + b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'.ljust(60) + bytes(2),
    ],
    ids=["empty", "zeros", "header-too-large", "cut-off", "type-that-numpy-lacks"],
)
def test_a_damaged_tensor_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        read_tensors(path, "make it again")
    assert message_of(error).startswith(f"{path}: ")
    assert str(error.value).endswith(": make it again")


@pytest.mark.parametrize("place", ["file/below", "/proc/devit"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        make_folder(tmp_path / place)


def test_a_folder_that_is_made_holds_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_with_somebody_elses_manifest_is_not_ours_to_replace(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
    with pytest.raises(InputError, match="something else"):
        check_replaceable(tmp_path, "manifest.json")
    (tmp_path / "manifest.json").write_text('{"schema": 1, "code_version": "0", "files": []}')
    check_replaceable(tmp_path, "manifest.json")
