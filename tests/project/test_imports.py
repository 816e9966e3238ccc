"""Imports go one way, heavy packages stay out of devices, rooms and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from devit_contract.extras import PACKAGES

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
RUNS_ENGINES = ("bench/", "cli.py", "load/local_", "sweep/")
"""Modules of profiling that run engines on the device itself, or start those that do."""
GROUND = {"PIL", "msgspec", "numpy", "safetensors", "tomli", "zmq"}
"""What every installation has."""
MOST_FLOORS, MOST_NAMES, MOST_LINES = 7, {"devit_profiling": 14}, 60


def modules(place: str) -> list[Path]:
    return sorted((ROOT / place).glob("devit*/**/*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:]).removesuffix(".__init__")


@cache
def imports() -> dict[str, set[str]]:
    """Each module of the house and the modules of the house that it imports, inside functions too."""
    paths = {dotted(path): path for place in PLACES for path in modules(place)}
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= members & paths.keys() or {node.module or ""}
        found[module] = names & paths.keys() - {module}
    return found


def room(module: str) -> str:
    """A subpackage, or a module beside the subpackages."""
    return ".".join(module.split(".")[:2])


def rooms(place: str) -> dict[str, set[str]]:
    """Each room of a place and the rooms that it imports from."""
    package = f"devit_{place}"
    found: dict[str, set[str]] = {}
    for module, names in imports().items():
        if module.split(".")[0] == package:
            inside = {room(name) for name in names if name.split(".")[0] == package}
            found.setdefault(room(module), set()).update(inside - {room(module)})
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """How many nodes the longest way down from each node has.

    Raises:
        CycleError: There is a circle; its second argument names it.
    """
    depth: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        depth[node] = 1 + max((depth[below] for below in graph[node]), default=0)
    return depth


def test_modules_form_no_circle() -> None:
    try:
        floors(imports())
    except CycleError as err:
        pytest.fail(" imports ".join(reversed(err.args[1])))


@pytest.mark.parametrize("place", PLACES)
def test_the_rooms_of_a_place_are_few_floors_high(place: str) -> None:
    try:
        depth = floors(rooms(place))
    except CycleError as err:
        pytest.fail(" imports ".join(reversed(err.args[1])))
    assert max(depth.values()) <= MOST_FLOORS, sorted(depth.items(), key=lambda item: item[1])


@pytest.mark.parametrize("place", PLACES)
def test_no_folder_of_a_place_is_long(place: str) -> None:
    folders = {path.parent for path in modules(place)}
    for folder in folders:
        names = [path.name for path in folder.iterdir() if path.name != "__pycache__"]
        assert len(names) <= MOST_NAMES.get(folder.name, 16), f"{folder}: {sorted(names)}"


def test_no_function_is_long() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}: {length} lines"
        for place in PLACES
        for path in modules(place)
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES
    ]
    assert long == []


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
                assert name == "devit_profiling.sensor.sampler", f"{path} imports {name}"


def test_only_what_runs_on_a_device_takes_engines_into_profiling() -> None:
    folder = ROOT / "profiling" / "devit_profiling"
    for path in modules("profiling"):
        if not path.relative_to(folder).as_posix().startswith(RUNS_ENGINES):
            assert not [name for name in imported_names(path) if name.startswith("devit_engines")], path


def test_every_package_that_is_imported_is_of_the_ground_or_of_an_extra_that_is_known() -> None:
    """Otherwise its absence would be a traceback; starlette brings anyio, and uvicorn h11."""
    known = GROUND | {"anyio", "h11"} | {package for packages in PACKAGES.values() for package in packages}
    for path in (path for place in PLACES for path in modules(place)):
        packages = {name.split(".")[0] for name in imported_names(path)} - sys.stdlib_module_names
        strange = {name for name in packages if not name.startswith("devit")} - known
        assert not strange, path


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


def test_an_agent_starts_without_what_it_may_never_need() -> None:
    """Each of these takes 10 ms or 2 MB of an agent, as benchmarks/footprint measures them."""
    code = (
        "import sys, devit_edge_agent.start, devit_contract.service.terminal, onnxruntime\n"
        "needless = 'PIL asyncio concurrent.futures importlib.metadata pydantic subprocess typer'.split()\n"
        "print([name for name in needless if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
