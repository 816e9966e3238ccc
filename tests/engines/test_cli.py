"""What the commands print, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.engines.int8 import with_int8

from devit_contract.artefacts.manifest import Bundle, write_manifest
from devit_engines.building.build_all import build_engines
from devit_engines.building.report import ModelReport
from devit_engines.building.store import Store

RUN = """
import typer
from devit_contract.service.terminal import run
from devit_engines import cli
root = typer.Typer(pretty_exceptions_enable=False)
root.command()(cli.build)
root.add_typer(cli.engines_app, name="engines")
run(root, "devit")
"""


def devit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_build_prints_a_table_of_what_was_built_and_how_well_it_agrees(tiny: Bundle, store: Store) -> None:
    done = devit("build", tiny.folder, "--baseline", "--store", store.folder)
    assert done.returncode == 0, done.stderr
    for text in ("submodel 0", "submodel 1", "baseline", "fp32", "<= 4.6%"):
        assert text in done.stdout
    assert "ONNX Runtime CPU engines, no TensorRT here" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == "next: edge-agent --config agent.toml"
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in ("submodel 0", "submodel 1", "baseline"):
        assert f"warning: {name}: validated with 64 golden images, fewer than 256: up to 4.6%" in done.stderr


def test_build_prints_json_for_programs(tiny: Bundle, store: Store) -> None:
    done = devit("build", tiny.folder, "--submodels", "1", "--store", store.folder, "--json")
    (engine,) = json.loads(done.stdout)
    assert (engine["model"], engine["record"]["key"]["variant"], engine["was_cached"]) == (1, "fp32", False)
    assert engine["path"] == str(store.folder / engine["digest"])
    assert engine["record"]["accuracy"]["flips"] == 0


def test_build_by_preference_shows_every_variant_and_lists_what_is_kept(tiny: Bundle, store: Store) -> None:
    with_int8(with_int8(tiny, [0], gain=0.1), [1])
    done = devit("build", tiny.folder, "--prefer", "accuracy", "--store", store.folder)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for text in ("submodel 0 of tiny, by accuracy", "submodel 1 of tiny, by accuracy", "int8", "fp32", "kept"):
        assert text in done.stdout
    assert "submodel 0, int8, failed: smallest cosine" in done.stdout
    again = json.loads(devit("build", tiny.folder, "--store", store.folder, "--json").stdout)
    assert [(each["prefer"], each["was_cached"], each["doubt"]) for each in again] == [("accuracy", True, "")] * 2
    assert [[(tried["variant"], tried["verdict"]) for tried in each["tried"]] for each in again] == [
        [("int8", "failed"), ("fp32", "kept")],
        [("int8", "left"), ("fp32", "kept")],
    ]
    for report in again:
        msgspec.convert(report, ModelReport)
    listed = devit("engines", "list", "--store", store.folder)
    assert " ".join(listed.stdout.split()).count("kept") == 2
    entries = json.loads(devit("engines", "list", "--store", store.folder, "--json").stdout)
    kept = {(each["record"]["title"][:10], each["record"]["key"]["variant"]): each["kept_for"] for each in entries}
    assert kept == {
        ("submodel 0", "fp32"): "accuracy",
        ("submodel 1", "int8"): None,
        ("submodel 1", "fp32"): "accuracy",
    }


def test_energy_without_a_sensor_is_one_line_that_names_what_to_run(tiny: Bundle, store: Store) -> None:
    done = devit("build", tiny.folder, "--prefer", "energy", "--store", store.folder)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: --prefer energy needs a power sensor")
    assert done.stderr.endswith("run devit build --prefer latency\n")


def test_a_named_failure_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = devit("build", tmp_path / "none", "--store", tmp_path / "store")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "wrong", [["--submodels", "a,b"], ["--threads", "0"], ["--threads", "257"], ["--sumbodels", "1"]]
)
def test_wrong_usage_is_exit_code_2(tiny: Bundle, wrong: list[str]) -> None:
    assert devit("build", tiny.folder, *wrong).returncode == 2


def test_list_names_every_engine_and_verify_finds_them_whole(tiny: Bundle, store: Store) -> None:
    build_engines(tiny, store)
    listed = devit("engines", "list", "--store", store.folder)
    assert "2 engines" in " ".join(listed.stdout.split())
    verified = devit("engines", "verify", "--store", store.folder)
    assert (verified.returncode, verified.stdout.count("whole")) == (0, 2)
    entries = json.loads(devit("engines", "list", "--store", store.folder, "--json").stdout)
    assert {entry["record"]["title"] for entry in entries} == {"submodel 0 of tiny", "submodel 1 of tiny"}


def test_a_store_without_engines_is_said_and_is_no_empty_table(tmp_path: Path) -> None:
    listed = devit("engines", "list", "--store", tmp_path)
    assert listed.stdout == f"{tmp_path}: no engines: make some with devit build\n"


def test_verify_names_the_damaged_engine_and_prune_removes_it_alone(tiny: Bundle, store: Store) -> None:
    first, second = build_engines(tiny, store)
    (store.folder / first.digest / "model.onnx").write_bytes(b"")
    verified = devit("engines", "verify", "--store", store.folder)
    assert verified.returncode == 1
    assert f"1 of 2 engines are damaged ({first.digest[:12]})" in verified.stderr
    assert devit("engines", "verify", "--store", store.folder, "--json").returncode == 1
    pruned = devit("engines", "prune", "--store", store.folder)
    assert f"removed {first.digest[:12]} (submodel 0 of tiny): damaged" in pruned.stdout
    assert [entry.digest for entry in store.entries()] == [second.digest]


def test_prune_keeps_what_a_kept_bundle_needs(tiny: Bundle, store: Store) -> None:
    first, second = build_engines(tiny, store)
    done = devit("engines", "prune", "--store", store.folder, "--keep", tiny.folder)
    assert "0 engines removed" in done.stdout
    tiny.path("submodel", device=0, variant="fp32").unlink()
    files = tuple(file for file in tiny.manifest.files if (file.device, file.variant) != (0, "fp32"))
    write_manifest(tiny.folder, msgspec.structs.replace(tiny.manifest, files=files))
    done = devit("engines", "prune", "--store", store.folder, "--keep", tiny.folder)
    assert f"removed {first.digest[:12]} (submodel 0 of tiny): its graph is in no kept bundle" in done.stdout
    assert [entry.digest for entry in store.entries()] == [second.digest]


def test_prune_removes_what_a_killed_build_left_behind(tiny: Bundle, store: Store) -> None:
    (built,) = build_engines(tiny, store, submodels=[0])
    (store.folder / f".{'0' * 64}.abc").mkdir()
    assert "left behind" in devit("engines", "prune", "--store", store.folder).stdout
    assert store.leftovers() == []
    assert [entry.digest for entry in store.entries()] == [built.digest]


def test_an_empty_store_is_listed_and_pruned_without_an_error(tmp_path: Path) -> None:
    for command in ("list", "verify", "prune"):
        assert devit("engines", command, "--store", tmp_path / "none").returncode == 0


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [
        ("--precision", "int4", "'int8', 'fp16', 'fp32'"),
        ("--prefer", "beauty", "'latency', 'energy', 'accuracy'"),
        ("--backend", "abacus", "'auto', 'tensorrt', 'ort'"),
        ("--cuda", "cupy", "'auto', 'pycuda', 'cuda-bindings', 'ctypes'"),
        ("--host-memory", "managed", "'pinned', 'mapped'"),
    ],
)
def test_a_word_outside_the_list_is_wrong_usage(tiny: Bundle, option: str, value: str, choices: str) -> None:
    done = devit("build", tiny.folder, option, value)
    assert done.returncode == 2
    assert choices in " ".join(done.stderr.replace("│", " ").split())


def test_inspect_says_that_onnx_runtime_has_no_layers_to_look_at(tiny: Bundle, store: Store) -> None:
    build_engines(tiny, store)
    done = devit("engines", "inspect", tiny.folder, "--store", store.folder)
    assert done.returncode == 1
    assert "an engine of ONNX Runtime has no layers to inspect" in done.stderr
