"""Names of needed libraries out of ELF files: of one written here byte by byte, and of real ones."""

from __future__ import annotations

import os
import struct
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devit_engines.doctor.elf import needed_libraries


def elf(*needed: str) -> bytes:
    """Write the head of a shared library for aarch64: header, two segments, dynamic section, names.

    Its segment is loaded at an address that is not its place in the file, as in real ones.
    """
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    places = [1 + sum(len(name) + 1 for name in needed[:index]) for index in range(len(needed))]
    load_at, start = 0x10000, 64 + 2 * 56
    strings = start + 16 * (len(needed) + 2)
    dynamic = b"".join(struct.pack("<qQ", 1, place) for place in places)
    dynamic += struct.pack("<qQqQ", 5, load_at + strings, 0, 0)
    size = strings + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<2HI3QI6H", 3, 183, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<2I6Q", 1, 5, 0, load_at, load_at, size, size, 0x1000)
    found = struct.pack("<2I6Q", 2, 6, start, load_at + start, load_at + start, len(dynamic), len(dynamic), 8)
    return header + load + found + dynamic + names


def test_every_needed_name_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "libnvinfer.so.10"
    path.write_bytes(elf("libnvdla_compiler.so", "libdl.so.2", "libc.so.6"))
    assert needed_libraries(path) == ("libnvdla_compiler.so", "libdl.so.2", "libc.so.6")
    path.write_bytes(elf())
    assert needed_libraries(path) == ()


def test_real_libraries_need_the_c_library_and_others() -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = [needed_libraries(path) for path in Path(np.__file__).parent.rglob(f"*{suffix}")]
    assert None not in found
    names = {name for names in found if names is not None for name in names}
    assert {"libc.so.6", "libm.so.6"} <= names
    assert all(name.startswith(("lib", "ld-")) and ".so" in name for name in names)


def test_what_is_no_such_file_is_told_apart_from_one_that_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "library"
    assert needed_libraries(path) is None
    for content in (b"", b"x\n", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(100), sys.version.encode()):
        path.write_bytes(content)
        assert needed_libraries(path) is None
    path.unlink()
    os.mkfifo(path)
    assert needed_libraries(path) is None


@pytest.mark.parametrize("length", range(0, len(elf("libc.so.6")), 7))
def test_a_file_that_was_cut_off_is_none(tmp_path: Path, length: int) -> None:
    path = tmp_path / "library"
    path.write_bytes(elf("libc.so.6")[:length])
    assert needed_libraries(path) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(elf("libc.so.6")) - 1), value=st.integers(0, 255))
def test_a_changed_byte_ends_in_names_or_in_none(tmp_path: Path, place: int, value: int) -> None:
    content = bytearray(elf("libc.so.6"))
    content[place] = value
    path = tmp_path / "library"
    path.write_bytes(content)
    found = needed_libraries(path)
    assert found is None or all(isinstance(name, str) for name in found)
