"""TensorRT's version, and a plan's, without TensorRT."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from devit_contract.errors import EngineError
from devit_engines.building.backends import backend_of
from devit_engines.trt import plan

REAL_HEADER = bytes.fromhex("767472740000000002000000000000008421020000000000000107017400")[:28]
"""Of a plan that TensorRT-RTX 1.7.1.116 wrote; its magic is another, its version stands in the same place."""


def header(*version: int) -> bytes:
    return b"ftrt" + bytes(20) + bytes(version) + b"rest"


def test_the_version_stands_in_bytes_24_to_27() -> None:
    assert plan.plan_version(header(10, 3, 0, 26)) == "10.3.0.26"


@pytest.mark.parametrize("content", [b"", b"ftrt", b"\x00\x00\x10\x00{json", header(10, 3, 0, 26)[:27], REAL_HEADER])
def test_other_bytes_are_no_plan(content: bytes) -> None:
    assert plan.plan_version(content) is None
    with pytest.raises(EngineError, match="submodel 0: expected a TensorRT plan"):
        plan.check_plan(content, "10.3.0", "submodel 0")


@pytest.mark.parametrize("installed", ["10.7.0", "10.3.1.2", "8.6.2", "11.4.1.1"])
def test_a_plan_of_another_version_gets_a_sentence(installed: str) -> None:
    with pytest.raises(EngineError, match=rf"built by TensorRT 10\.3\.0\.26, this device has TensorRT {installed}"):
        plan.check_plan(header(10, 3, 0, 26), installed, "submodel 0")


@pytest.mark.parametrize("installed", ["10.3.0", "10.3.0.26", "10.3.0.30"])
def test_a_plan_of_the_same_version_passes_whatever_the_build_number(installed: str) -> None:
    plan.check_plan(header(10, 3, 0, 26), installed, "submodel 0")


@pytest.mark.parametrize(
    ("number", "text"), [(8602, "8.6.2"), (100300, "10.3.0"), (101302, "10.13.2"), (110401, "11.4.1")]
)
def test_the_librarys_own_number_is_spelled_out(number: int, text: str) -> None:
    library = cast(ctypes.CDLL, SimpleNamespace(getInferLibVersion=lambda: number))
    assert plan.installed_version(lambda name: library) == text


def test_package_metadata_comes_before_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "tensorrt-10.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def none(name: str) -> ctypes.CDLL:
        raise AssertionError(name)

    assert plan.installed_version(none) == "10.3.0"
    assert backend_of("auto").name == "tensorrt"


def test_no_tensorrt_is_an_error_that_names_the_doctor() -> None:
    def none(name: str) -> ctypes.CDLL:
        raise OSError(name)

    with pytest.raises(EngineError, match="devit doctor"):
        plan.installed_version(none)
