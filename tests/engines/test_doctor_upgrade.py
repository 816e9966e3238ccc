"""What the doctor says of another JetPack before anybody installs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.engines.building.test_store import CONTENT, RECORD
from tests.engines.test_doctor import BOARDS, copy, doctor, interpreter
from tests.engines.test_doctor_releases import set_release

from devit_contract.errors import EngineError, InputError
from devit_engines.building.store import EngineRecord, Store
from devit_engines.doctor.examine import refuse
from devit_engines.doctor.finding import Finding, read_machine
from devit_engines.doctor.jetpack import JETPACKS
from devit_engines.doctor.upgrade import OldEngine, Upgrade, find_release, plan_upgrade

KNOWN = "4.6, 5.0.2, 6.0, 6.1, 6.2, 6.2.1, 6.2.2, 6.2.3, 7.0, 7.1, 7.2, 7.2.1, 7.2.2"


def plan(root: Path, version: str, *records: EngineRecord) -> Upgrade:
    found = plan_upgrade(read_machine(root, interpreter(root)), version, records)
    for finding in found.findings:
        assert (finding.cure is None) == (finding.state == "good"), finding
        assert "\n" not in f"{finding.found}{finding.cure}", finding
    return found


def findings(root: Path, version: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in plan(root, version).findings}


def changes(root: Path, version: str) -> set[str]:
    return {name for name, finding in findings(root, version).items() if finding.state != "good"}


def engine(
    version: str,
    title: str = "submodel 0 of tiny",
    *,
    backend: str = "tensorrt",
    l4t: str = "36.4.3",
    build_s: float = 60,
) -> EngineRecord:
    key = replace(RECORD.key, backend=backend, backend_version=version)
    return replace(RECORD, title=title, key=key, l4t=l4t, build_s=build_s)


# --- what breaks


def test_from_jetpack_6_to_7_2_everything_changes_but_the_board() -> None:
    """CUDA, Python and TensorRT: the rows of the table.

    libnvdla_compiler.so: wyoming-whisper-trt issue 1038, blakeblackshear/frigate pull request 23582.
    """
    found = findings(BOARDS / "orin-nano-jp6.2", "7.2.1")
    assert {name: finding.found for name, finding in found.items() if finding.state == "warning"} == {
        "TensorRT": "10.3 to 10.16",
        "Python": "3.10 to 3.12",
        "CUDA": "12.6 to 13.2",
        "containers": "images of now fail: their TensorRT needs libnvdla_compiler.so, which the new host lacks",
        "disk": "L4T 36.4.3 to 39.2.1: a new image erases keys, /etc/devit, bundles and the store",
    }
    assert found["JetPack"] == Finding("JetPack", "7.2.1 (L4T 39.2.1), brings CUDA 13.2, TensorRT 10.16")
    assert "JETPACK=7" in str(found["containers"].cure)
    assert "'.[jetson7]'" in str(found["CUDA"].cure)


def test_within_jetpack_6_nothing_breaks_where_tensorrt_stays(tmp_path: Path) -> None:
    """OE4T/meta-tegra d133bad0: 6.2.3 brings no other CUDA and TensorRT."""
    assert changes(BOARDS / "orin-nano-jp6.2", "6.2.3") == set()
    assert changes(BOARDS / "agx-orin-jp6.0", "6.2.3") == {"TensorRT"}
    assert "its API changes" in str(findings(BOARDS / "agx-orin-jp6.0", "6.2.3")["TensorRT"].cure)  # 8.6 to 10.3


@pytest.mark.parametrize(
    ("tree", "is_offered"), [("agx-orin-jp7.2", True), ("agx-thor-jp7.0", True), ("orin-nano-jp6.2", False)]
)
def test_jetpack_7_2_2_takes_tensorrt_11_on_agx_orin_and_thor(tree: str, is_offered: bool) -> None:
    """TensorRT 11.4.1, "Migrating from 10.x to 11.x on Jetson/JetPack"; release notes of 11.0 on what is gone."""
    found = findings(BOARDS / tree, "7.2.2")
    assert ("TensorRT 11" in found) == is_offered
    assert "TensorRT 11" not in findings(BOARDS / tree, "7.2.1")
    if is_offered:
        assert found["TensorRT 11"].found == (
            "11.4.1 can be installed: without weak typing, implicit INT8 and IPluginV2"
        )


def test_a_release_that_no_source_describes_is_unconfirmed() -> None:
    """TensorRT 11.4.1's pages name JetPack 7.2.2; no stored file names L4T 39.2.2."""
    assert findings(BOARDS / "agx-orin-jp7.2", "7.2.2")["JetPack"].found.endswith(", unconfirmed")


def test_back_to_jetpack_6_the_images_of_cuda_13_fail() -> None:
    """On a driver of CUDA 12.6 they end with cudaErrorInsufficientDriver, 35."""
    found = findings(BOARDS / "agx-orin-jp7.2", "6.2.3")
    assert found["containers"].found == "images of now fail: their CUDA is newer than 12.6 (error 35)"
    assert "JETPACK=6" in str(found["containers"].cure)


@pytest.mark.parametrize(
    ("tree", "version", "cure"),
    [
        ("orin-nano-jp6.2", "7.1", "choose one of 6.0, 6.1, 6.2, 6.2.1, 6.2.2, 6.2.3, 7.2, 7.2.1, 7.2.2"),
        ("agx-thor-jp7.0", "6.2.3", "choose one of 7.0, 7.1, 7.2, 7.2.1, 7.2.2"),
        ("xavier-nx-jp5.1", "6.0", "take an Orin or a Thor"),
        ("nano-jp4.6", "7.2", "take an Orin or a Thor"),
    ],
)
def test_a_board_that_the_release_does_not_support_is_refused(tree: str, version: str, cure: str) -> None:
    """NVIDIA's archive of Jetson Linux; r38.4 developer guide: not for the Orin family. 39.2: Orin and Thor."""
    found = plan(BOARDS / tree, version).findings
    with pytest.raises(EngineError, match=f"^board: expected one that this JetPack is made for, .*: {cure}$"):
        refuse(found)


def test_a_release_before_jetpack_6_is_refused() -> None:
    """LayerNormalization came with TensorRT 8.6."""
    with pytest.raises(EngineError, match=r"^JetPack: expected 6\.0 or later, found 5\.0\.2"):
        refuse(plan(BOARDS / "agx-orin-jp6.0", "5.0.2").findings)


def test_a_board_with_an_unknown_gpu_is_a_warning(tmp_path: Path) -> None:
    root = copy("agx-orin-jp7.2", tmp_path)
    shutil.rmtree(root / "proc/device-tree")
    assert "release notes of 7.2.1" in str(findings(root, "7.2.1")["board"].cure)


def test_from_a_release_newer_than_the_table_what_is_unknown_is_said(tmp_path: Path) -> None:
    root = copy("agx-orin-jp7.2", tmp_path)
    set_release(root, "41.0.0")
    assert {
        name: finding.found for name, finding in findings(root, "7.2.1").items() if name in ("TensorRT", "CUDA")
    } == {
        "TensorRT": "unknown to 10.16",
        "CUDA": "unknown to 13.2",
    }


# --- which JetPack


def test_every_jetpack_with_a_number_can_be_named() -> None:
    for version in KNOWN.split(", "):
        assert find_release(version).version == version
    assert find_release("6.2.1").l4t == "36.4.7"  # it has two releases
    assert {row.version for row in JETPACKS if row.version.replace(".", "").isdecimal()} - {"4"} == set(
        KNOWN.split(", ")
    )


@pytest.mark.parametrize("version", ["", "7", "7.x", "8.0", "39.2.1", "7.2.x", "6.2.3 "])
def test_an_unknown_release_names_the_known_ones(version: str) -> None:
    with pytest.raises(InputError) as caught:
        find_release(version)
    assert str(caught.value) == f"JetPack {version}: expected one of {KNOWN}: give one of them to --upgrade-to"


def test_a_machine_that_is_no_jetson_has_no_jetpack() -> None:
    with pytest.raises(InputError, match="nv_tegra_release: expected the release of a Jetson, found none"):
        plan(BOARDS / "laptop", "7.2")


# --- which engines


def test_engines_of_another_tensorrt_are_built_again_for_as_long_as_they_took() -> None:
    records = [
        engine("10.3.0", build_s=61.25),
        engine("10.3.0", "submodel 1 of tiny", build_s=30.0),
        engine("1.23.2", "baseline of tiny", backend="ort", build_s=0.5),
    ]
    found = plan(BOARDS / "orin-nano-jp6.2", "7.2.1", *records)
    assert found.build_s == 91.2
    assert found.engines == (
        OldEngine("baseline of tiny", "fp32", "ort 1.23.2", False, "stays, with 1.23.2 installed again", 0.5),
        OldEngine("submodel 0 of tiny", "fp32", "tensorrt 10.3.0", True, "TensorRT 10.16 does not load it", 61.25),
        OldEngine("submodel 1 of tiny", "fp32", "tensorrt 10.3.0", True, "TensorRT 10.16 does not load it", 30.0),
    )


@pytest.mark.parametrize(
    ("version", "l4t", "to", "is_built_again", "why"),
    [
        ("10.3.0", "36.4.3", "6.2.3", False, "stays if TensorRT stays 10.3.0; its latency is of L4T 36.4.3"),
        ("10.3.0", "36.5.2", "6.2.3", False, "stays"),
        ("8.6.2", "36.3.0", "6.2.3", True, "TensorRT 10.3 does not load it"),
        ("10.16.2.10", "39.2.0", "7.2.1", False, "stays if TensorRT stays 10.16.2.10; its latency is of L4T 39.2.0"),
        ("10.1.6", "39.2.0", "7.2.1", True, "TensorRT 10.16 does not load it"),
        ("11.4.1", "39.2.2", "7.2.2", False, "stays, with 11.4.1 installed again"),
        ("11.4.1", "39.2.2", "7.2.1", True, "TensorRT 10.16 does not load it"),
    ],
)
def test_an_engine_stays_where_tensorrt_does(version: str, l4t: str, to: str, is_built_again: bool, why: str) -> None:
    """NVIDIA, support matrix: a plan is for the TensorRT that built it, unless it was built version compatible."""
    (found,) = plan(BOARDS / "agx-orin-jp7.2.2", to, engine(version, l4t=l4t)).engines
    assert (found.is_built_again, found.why) == (is_built_again, why)


def test_what_an_earlier_upgrade_left_in_the_store_counts_once() -> None:
    old = replace(engine("8.6.2", build_s=100.0), created="2025-01-31T12:00:00Z")
    new = replace(engine("10.3.0", build_s=60.0), created="2026-01-31T12:00:00Z")
    for records in ((old, new), (new, old)):
        found = plan(BOARDS / "orin-nano-jp6.2", "7.2", *records)
        assert [each.built_by for each in found.engines] == ["tensorrt 10.3.0"]
        assert found.build_s == 60.0


# --- the command


def test_the_command_shows_what_breaks_and_which_engines(tmp_path: Path) -> None:
    record = engine("10.3.0", build_s=180.0)
    Store(tmp_path).keep(record, CONTENT)
    arguments = ("--root", BOARDS / "orin-nano-jp6.2", "--store", tmp_path, "--upgrade-to", "7.2.2")
    done = doctor(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    table, _, rest = done.stdout.partition("\nTensorRT: ")
    assert max(map(len, table.splitlines())) <= 80
    assert "submodel 0 of tiny, fp32" in rest
    assert done.stdout.endswith("1 of 1 engines are built again, in 3 min if they take as long as before\n")
    printed = json.loads(doctor(*arguments, "--json").stdout)
    assert list(printed) == ["now", "to", "findings", "engines", "build_s"]
    assert (printed["now"], printed["to"], printed["build_s"]) == ("36.4.3", "7.2.2", 180.0)
    assert printed["engines"][0]["is_built_again"] is True
    assert {finding["state"] for finding in printed["findings"]} == {"good", "warning"}


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    for arguments, error in (
        (("--root", BOARDS / "orin-nano-jp6.2", "--upgrade-to", "7.0"), "error: board: expected one that this JetPack"),
        (("--root", BOARDS / "orin-nano-jp6.2", "--upgrade-to", "9"), "error: JetPack 9: expected one of 4.6, "),
    ):
        done = doctor(*arguments, "--store", tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(error)
        assert done.stderr.count("\n") == 1
