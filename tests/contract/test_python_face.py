"""The package ``devit``: complete, light, and as docs/python.md shows it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.project.pages import DOCS, ROOT, blocks

import devit
from devit_contract import errors
from devit_pipeline.local_cell import LocalCell

CAT = ROOT / "tests" / "data" / "pictures" / "rgb.jpg"
ERRORS = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}


def test_all_is_complete_and_sorted() -> None:
    public = {name for name in vars(devit) if not name.startswith("_")}
    assert set(devit.__all__) == public
    assert devit.__all__ == sorted(devit.__all__)


def test_every_error_is_exported_and_every_one_without_kinds_of_its_own_is_raised() -> None:
    assert set(devit.__all__) >= ERRORS
    sources = [path.read_text() for path in ROOT.glob("*/devit*/**/*.py")]
    sources += [path.read_text() for path in ROOT.glob("deploy/**/*.py")]
    for name in ERRORS:
        has_kinds = bool(getattr(errors, name).__subclasses__())
        is_raised = any(re.search(rf"\b{name}\(", re.sub(rf"class {name}\(", "", source)) for source in sources)
        assert is_raised or has_kinds, name
    assert not any(re.search(r"\bLinkError\((?!DevitError)", source) for source in sources), "name which kind it is"


def test_whatever_a_client_takes_or_gives_is_exported() -> None:
    known = {"str", "int", "float", "bool", "bytes", "object", "None", "list", "tuple", "Iterable", "Iterator"}
    for name, method in inspect.getmembers(devit.Client, inspect.isfunction):
        if not name.startswith("_"):
            text = " ".join(str(hint) for hint in method.__annotations__.values())
            assert set(re.findall(r"[A-Za-z_]\w*", text)) <= known | set(devit.__all__), name


def test_it_is_light() -> None:
    code = "import sys, devit; print(sorted({'torch', 'typer', 'rich', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_blocks_of_the_page_run(
    cell: LocalCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fleet.toml").write_bytes(cell.fleet_path.read_bytes())
    key = tmp_path / "client.key_secret"
    key.touch(mode=0o600)
    key.write_bytes(cell.client_key_path.read_bytes())
    (tmp_path / "cat.jpg").write_bytes(CAT.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = blocks(DOCS / "python.md", "python")
    assert len(found) > 3
    for block in found:
        exec(compile(ast.parse(block), "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "FULL True" in printed
    assert "no answer within 0.2 s" in printed
