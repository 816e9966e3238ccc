"""The messages on the page of troubleshooting are those that the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.project.pages import DOCS, GENERATED, ROOT

from devit_contract.wire.words import MissingReason

PAGE = (DOCS / "troubleshooting.md").read_text()
MESSAGES = [message.strip() for _, message in re.findall(r"^### (`+)(.+)\1$", PAGE, re.MULTILINE)]
ANYTHING = "\0"


@cache
def texts() -> list[str]:
    """Every text in the code but docstrings; what is put in at run time is one character for anything."""
    return [
        text
        for path in sorted(ROOT.glob("*/devit*/**/*.py"))
        for text in _texts(ast.parse(path.read_text(encoding="utf-8")))
    ]


def _texts(module: ast.Module) -> Iterator[str]:
    constants = {
        target.id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    described = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            yield "".join(_piece(value, constants) for value in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            yield node.value


def _piece(value: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    is_name = isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Name)
    return constants.get(value.value.id, ANYTHING) if is_name else ANYTHING  # type: ignore[attr-defined]


def pattern(message: str) -> str:
    return ".*".join(re.escape(part) for part in message.split("..."))


def test_the_page_has_messages() -> None:
    assert len(MESSAGES) > 40
    assert len(MESSAGES) == len(re.findall(r"^### ", PAGE, re.MULTILINE))


def test_the_code_has_every_message() -> None:
    assert [message for message in MESSAGES if len(message.replace("...", "").strip(" :")) < 5] == []
    patterns = {message: re.compile(pattern(message), re.DOTALL) for message in MESSAGES}
    assert [message for message, found in patterns.items() if not any(map(found.fullmatch, texts()))] == []


def test_a_message_that_is_not_in_the_code_would_be_found() -> None:
    assert not any(re.fullmatch(pattern("...: expected mode 0666, found ..."), text) for text in texts())


def test_the_doctor_says_what_the_page_quotes() -> None:
    quoted = re.findall(r"^\| `([\w ]+)`: `(.+?)` \|", PAGE, re.MULTILINE)
    assert len(quoted) > 8
    for name, found in quoted:
        assert name in texts()
        assert any(re.search(pattern(found), text) for text in texts()), found


def test_every_reason_for_a_missing_feature_says_what_happened_and_what_to_do() -> None:
    assert "<!-- generated: members devit_contract.wire.words:MissingReason -->" in PAGE
    rows = GENERATED["fill"]("<!-- generated: members devit_contract.wire.words:MissingReason -->").splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows if row]
    assert [cell[0] for cell in cells] == [f"`{reason}`" for reason in MissingReason]
    assert all(len(cell) == 3 and all(cell) for cell in cells)


def test_the_exit_codes_are_those_of_the_terminal() -> None:
    source = (ROOT / "contract" / "devit_contract" / "service" / "terminal.py").read_text()
    (docstring,) = re.findall(r"Run a command line to its exit code.*?\"\"\"", source, re.DOTALL)
    told = {int(code) for code in re.findall(r"(?<![\w.])(\d{1,3}) (?=done|a |wrong|the |Ctrl)", docstring)}
    table = PAGE.partition("## First")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == told
    assert {0, 1, 2, 70, 130} <= told


def test_the_page_is_found_from_the_front() -> None:
    assert "docs/troubleshooting.md" in Path(ROOT / "README.md").read_text()
