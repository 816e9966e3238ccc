"""What is known of single releases of JetPack and TensorRT; each fact's docstring names where it was read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tests.engines.test_doctor import BOARDS, LIBRARIES, VENV, copy, install, look
from tests.engines.test_elf import elf

from devit_engines.doctor.jetpack import JETPACKS, jetpack_of, takes_tensorrt_11

WHEEL = ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs")


def set_release(root: Path, l4t: str) -> None:
    major, _, revision = l4t.partition(".")
    (root / "etc/nv_tegra_release").write_text(f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic\n")


def with_wheel(root: Path, version: str) -> Path:
    """Put TensorRT's wheels into the environment, in the place of the system's TensorRT."""
    for path in [*root.glob("usr/lib/python3*/dist-packages/tensorrt*")]:
        shutil.rmtree(path)
    for path in root.glob(f"{LIBRARIES}/libnvinfer*"):
        path.unlink()
    (site,) = root.glob(f"{VENV}/lib/python3*/site-packages")
    for name in WHEEL:
        install(site, name, version)
    return root


# --- JetPack


@pytest.mark.parametrize(
    ("l4t", "version", "is_confirmed"),
    [
        ("32.7.4", "4.6.x", True),
        ("35.1.0", "5.0.2", False),
        ("35.6.1", "5.1.x", True),
        ("36.3.0", "6.0", True),
        ("36.4.0", "6.1", True),
        ("36.4.4", "6.2.1", True),
        ("36.4.7", "6.2.1", True),
        ("36.5.0", "6.2.2", True),
        ("36.5.1", "6.2.x", False),
        ("36.5.2", "6.2.3", True),
        ("38.1.0", "7.x for Thor", False),
        ("38.2.2", "7.0", False),
        ("38.4.0", "7.1", True),
        ("39.0.0", "7.2 early access", False),
        ("39.1.0", "7.x", False),
        ("39.2.0", "7.2", True),
        ("39.2.1", "7.2.1", True),
        ("39.2.2", "7.2.2", False),
        ("39.2.5", "7.2.x", False),
        ("39.3.0", "7.x", False),
    ],
)
def test_the_table_of_releases_takes_the_most_exact_row(l4t: str, version: str, is_confirmed: bool) -> None:
    """Numbers up to 36.5.0, and 38 and 39.0: rbonghi/jetson_stats 7.2.0, jtop/core/jetson_variables.py.

    36.5.2: OE4T/meta-tegra d133bad0. 38.4: developer.nvidia.com/embedded/jetpack/downloads/archive-7.1.md. 39.2.0 and
    39.2.1: roboflow/inference pull request 2478, OE4T/meta-tegra 7f4b0eee. No source has 39.1, 39.2.2 and 39.3.
    """
    found = jetpack_of(l4t)
    assert found is not None
    assert (found.version, found.is_confirmed) == (version, is_confirmed)


def test_no_release_from_32_to_39_is_unknown() -> None:
    """36.5.2 once was JetPack 6.2.2, and 39.0 no release at all."""
    for major in (32, 34, 35, 36, 38, 39):
        for minor in range(10):
            assert jetpack_of(f"{major}.{minor}.0") is not None, (major, minor)
    assert jetpack_of("40.0.0") is None


def test_jetpack_6_2_3_brings_what_6_2_2_brings() -> None:
    """OE4T/meta-tegra d133bad0, release notes: no update of CUDA, cuDNN and TensorRT."""
    old, new = jetpack_of("36.5.0"), jetpack_of("36.5.2")
    assert old is not None
    assert new is not None
    assert (new.python, new.cuda, new.tensorrt) == (old.python, old.cuda, old.tensorrt) == ("3.10", "12.6", "10.3")
    found = look(BOARDS / "orin-nano-jp6.2.3")
    assert found["JetPack"].found == "6.2.3 (L4T 36.5.2), brings CUDA 12.6, TensorRT 10.3"


def test_each_row_names_a_release_of_its_own() -> None:
    assert len({row.l4t for row in JETPACKS}) == len(JETPACKS)
    assert all(re.fullmatch(r"\d+(\.\d+){0,2}", row.l4t) for row in JETPACKS)


# --- TensorRT 11


@pytest.mark.parametrize(
    ("l4t", "board", "compatible", "is_supported"),
    [
        ("39.2.2", "NVIDIA Jetson AGX Orin Developer Kit", (), True),
        ("39.2.2", "NVIDIA Jetson AGX Thor Developer Kit", (), True),
        ("39.3.0", "Acme Box", ("acme,box", "nvidia,p3701-0005", "nvidia,tegra234"), True),
        ("39.2.2", "Acme Box", ("acme,box", "nvidia,tegra264"), True),
        ("39.2.2", "NVIDIA Jetson Orin Nano Developer Kit", ("nvidia,p3767-0005", "nvidia,tegra234"), False),
        ("39.2.2", "NVIDIA Jetson Orin NX", ("nvidia,p3767-0000", "nvidia,tegra234"), False),
        ("39.2.2", "NVIDIA IGX Orin Development Kit", ("nvidia,p3701-0008",), False),
        ("39.2.1", "NVIDIA Jetson AGX Orin Developer Kit", (), False),
        ("36.5.2", "NVIDIA Jetson AGX Orin Developer Kit", (), False),
        ("38.4.0", "NVIDIA Jetson AGX Thor Developer Kit", (), False),
    ],
)
def test_tensorrt_11_is_for_agx_orin_and_thor_from_jetpack_7_2_2_on(
    l4t: str, board: str, compatible: tuple[str, ...], is_supported: bool
) -> None:
    """TensorRT 11.4.1, "Migrating from 10.x to 11.x on Jetson/JetPack"; 11.4.0's guide: no JetPack at all."""
    assert takes_tensorrt_11(l4t, board, compatible) == is_supported


def test_the_doctor_says_where_tensorrt_11_may_be_installed(tmp_path: Path) -> None:
    """The same page: install NVIDIA's package for servers (SBSA)."""
    orin = copy("agx-orin-jp7.2", tmp_path)
    assert look(orin)["TensorRT"].found == "10.16.2.10, apt, for Python 3.12"
    set_release(orin, "39.2.2")
    assert look(orin)["TensorRT"].found == ("10.16.2.10, apt, for Python 3.12; 11.4.1 (SBSA package) is supported here")
    found = look(BOARDS / "agx-orin-jp7.2.2")
    assert found["TensorRT"].found == "11.4.1, apt, for Python 3.12"
    assert found["engines"].found == "built and run by TensorRT 11.4.1 or ONNX Runtime 1.32.0"


def test_tensorrt_11_elsewhere_is_unconfirmed_and_not_refused(tmp_path: Path) -> None:
    """The same page: JetPack 6 has to stay on 10.x. The accuracy check decides what works."""
    thor = with_wheel(copy("agx-thor-jp7.0", tmp_path), "11.4.1")
    found = look(thor)
    assert found["TensorRT"].found.endswith(
        "unconfirmed here: NVIDIA supports 11.4.1 on AGX Orin and Thor with JetPack 7.2.2"
    )
    assert (found["TensorRT"].state, found["engines"].state) == ("good", "good")
    set_release(thor, "39.2.2")
    assert look(thor)["TensorRT"].found == "11.4.1, a wheel from PyPI"


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("10.7.0", "warning"),
        ("10.15.1.29", "warning"),
        ("10.16.0", "warning"),
        ("10.16.1.11", "good"),
        ("11.4.1", "good"),
    ],
)
@pytest.mark.parametrize("l4t", ["39.0.0", "39.2.0", "39.2.2"])
def test_wheels_have_kernels_for_orin_from_10_16_1_on(tmp_path: Path, l4t: str, version: str, state: str) -> None:
    """Release notes of TensorRT 10.16.1: support for Orin's GPU in the build for servers (SBSA), for JetPack 7."""
    orin = with_wheel(copy("agx-orin-jp7.2", tmp_path), version)
    set_release(orin, l4t)
    found = look(orin)["TensorRT"]
    assert found.state == state
    assert found.found.startswith(f"{version}, a wheel from PyPI")
    assert ("without kernels for this GPU (SM 87)" in found.found) == (state == "warning")


def test_a_later_wheel_on_jetpack_6_is_made_for_another_jetpack(tmp_path: Path) -> None:
    """TensorRT 11.4.1's page on Jetson: Orin on JetPack 6 has to stay on the 10.x of its JetPack."""
    found = look(with_wheel(copy("orin-nano-jp6.2", tmp_path), "10.16.1"))["TensorRT"]
    assert (found.state, found.found) == ("warning", "10.16.1, a wheel from PyPI, made for JetPack 7")


def test_thors_wheels_have_its_kernels_in_each_version(tmp_path: Path) -> None:
    thor = with_wheel(copy("agx-thor-jp7.0", tmp_path), "10.13.3")
    assert look(thor)["TensorRT"].state == "good"


# --- DLA


def test_what_dla_of_tensorrt_11_4_1_needs_is_unconfirmed_and_not_refused() -> None:
    """Release notes of TensorRT 11.4.1: DLA again, on AGX Orin with JetPack 7.2.2; of its compiler they say nothing."""
    found = look(BOARDS / "agx-orin-jp7.2.2")["libraries"]
    assert found.state == "good"
    assert found.found.endswith("; unconfirmed: whether DLA of TensorRT 11.4.1 needs libnvdla_compiler.so")


@pytest.mark.parametrize("tree", ["agx-orin-jp7.2", "agx-thor-jp7.0", "agx-thor-jp7.2.1-mig", "agx-orin-jp6.0"])
def test_no_other_tensorrt_is_asked_for_dla(tree: str) -> None:
    """The same notes: none in 11.0 to 11.3, and Thor has none; TensorRT 10.7 was the last before."""
    assert "DLA" not in look(BOARDS / tree)["libraries"].found


def test_a_tensorrt_11_that_is_linked_to_the_compiler_of_dla_asks_for_it(tmp_path: Path) -> None:
    """The loader cannot do without, whatever the notes say; where the package is, no source has said."""
    orin = copy("agx-orin-jp7.2.2", tmp_path)
    (orin / LIBRARIES / "libnvinfer.so.11.4.1").write_bytes(elf("libnvdla_compiler.so"))
    found = look(orin)["libraries"]
    assert (found.state, found.found) == ("warning", "libnvinfer 11.4.1 needs libnvdla_compiler.so, which is absent")
    assert "nvidia-l4t-dla-compiler; unconfirmed" in str(found.cure)


# --- boards


def test_an_igx_without_a_release_file_is_examined_like_any_computer() -> None:
    found = look(BOARDS / "igx-orin")
    assert found["board"].found == "NVIDIA IGX Orin Development Kit, sm_87"
    assert "JetPack" not in found
