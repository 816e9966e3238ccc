"""Imports go one way, heavy packages stay out of devices, and the terminal belongs to the command lines."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("contract", "decompose", "export", "engines", "edge_agent", "fusion", "gateway", "profiling", "pipeline")
ALLOWED = {
    "contract": set(),
    "decompose": {"contract"},
    "export": {"contract", "decompose"},
    "engines": {"contract"},
    "fusion": {"contract"},
    "gateway": {"contract", "profiling"},
    "profiling": {"contract", "engines"},
    "edge_agent": {"contract", "engines", "profiling"},
    "pipeline": set(PLACES),
}
TERMINAL_MODULES = {"cli", "terminal"}


def modules(place: str) -> list[Path]:
    return sorted((ROOT / place).glob("devit*/**/*.py"))


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("place", PLACES)
def test_a_place_imports_only_from_the_floors_below_it(place: str) -> None:
    for path in modules(place):
        for name in imported_names(path):
            package = name.split(".")[0]
            if package.startswith("devit_"):
                target = package.removeprefix("devit_")
                assert target == place or target in ALLOWED[place], f"{path} imports {name}"


def test_the_edge_agent_takes_only_the_sampler_from_profiling() -> None:
    for path in modules("edge_agent"):
        for name in imported_names(path):
            if name.startswith("devit_profiling"):
                # The lines' type stands beside the parser.
                assert name in ("devit_profiling.sensor.sampler", "devit_profiling.sensor.tegrastats"), (
                    f"{path} imports {name}"
                )


@pytest.mark.parametrize("place", PLACES)
def test_typer_and_rich_are_imported_by_command_lines_alone(place: str) -> None:
    for path in modules(place):
        packages = {name.split(".")[0] for name in imported_names(path)}
        assert path.stem.split("_")[-1] in TERMINAL_MODULES or not packages & {"typer", "rich"}, path


@pytest.mark.parametrize("place", ["contract", "engines", "edge_agent", "fusion", "gateway", "profiling"])
def test_what_runs_on_devices_names_no_training_package(place: str) -> None:
    for path in modules(place):
        packages = {name.split(".")[0] for name in imported_names(path)}
        assert not packages & {"torch", "onnx", "onnxsim", "onnxscript", "torchvision", "timm"}, path


@pytest.mark.parametrize("place", PLACES)
def test_every_module_tells_its_one_reason_in_its_first_line(place: str) -> None:
    for path in modules(place):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring is not None, path
        assert docstring.splitlines()[0].endswith((".", "?")), path


def test_no_module_is_named_like_a_standard_module() -> None:
    for place in PLACES:
        for path in modules(place):
            assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names, path


def test_a_running_agent_and_a_running_node_hold_no_training_package() -> None:
    code = (
        "import sys, devit_edge_agent.start, devit_fusion.node, devit_engines.ort, onnxruntime\n"
        "print([name for name in ('torch', 'onnx', 'onnxsim', 'matplotlib', 'rich', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
