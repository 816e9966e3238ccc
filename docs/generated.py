"""The parts of the pages that are made from the code: commands from their parsers, file formats from their structs.

A page says where such a part stands by a comment, ``<!-- generated: NAME ARGUMENT -->``. What is made of it is Markdown
that stands below the comment, up to ``<!-- end -->``, so that the page can be read as it is. ``make docs`` writes it
anew, and so does this file as a program; a test says where it is stale.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer.main

from devit_pipeline.cli import COMMANDS
from schema import field_docs, structs_within

ROOT = Path(__file__).parents[1]
_MARK = re.compile(
    r"^<!-- generated: (\S+) ?([^\n]*?) -->$(?:\n\n(?:(?!<!-- generated).)*?\n<!-- end -->$)?", re.MULTILINE | re.DOTALL
)
_EVERYWHERE = {"help", "install_completion", "show_completion"}
"""Options that every command has; the page names them once."""


def setup(app: Any) -> dict[str, bool]:  # noqa: ANN401 - Sphinx is not typed where this is checked
    """Register with Sphinx."""
    app.connect("source-read", lambda _app, _page, source: source.__setitem__(0, fill(source[0])))
    return {"parallel_read_safe": True}


def refreshed(text: str) -> str:
    """Write what is generated below each comment; a struct that came before on the page is not told again."""
    parts = _makers()
    return _MARK.sub(
        lambda match: f"{match[0].splitlines()[0]}\n\n{parts[match[1]](match[2]).strip()}\n\n<!-- end -->", text
    )


def fill(text: str) -> str:
    """Put what is generated in the place of each comment and of what stands below it."""
    parts = _makers()
    return _MARK.sub(lambda match: parts[match[1]](match[2]), text)


def _makers() -> dict[str, Callable[[str], str]]:
    """Make the parts of one page, by the names that its comments use."""
    told: set[type] = set()
    return {
        "commands": lambda _: "\n".join(_commands()),
        "programs": lambda _: "\n".join(_programs()),
        "struct": lambda name: "\n".join(_structs(name, told)),
        "docstring": _docstring,
        "kinds": lambda name: "\n".join(_kinds(name)),
        "members": lambda name: "\n".join(_members(name)),
        "readme": _paragraph,
    }


def command_line(name: str) -> Any:  # noqa: ANN401 - typer keeps its command types private
    """Load the parser of ``devit NAME``."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    return typer.main.get_command(getattr(importlib.import_module(module), attribute))


def _commands() -> Iterator[str]:
    for name, (_, summary) in COMMANDS.items():
        yield from _command(f"devit {name}", command_line(name), summary, level=3)


def _command(name: str, command: Any, summary: str, level: int) -> Iterator[str]:  # noqa: ANN401 - as above
    twin = re.search(r"\(= (\S+)\)", summary)
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=80)
    yield f"{'#' * level} `{name}`\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    if twin:
        yield f"`{twin[1]}` is the same command.\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    shown = [each for each in command.params if each.name not in _EVERYWHERE]
    if shown:
        rows = (_parameter(each.get_help_record(context)) for each in shown)
        yield from _table(("option", "meaning", "default, limits"), rows)
    for child in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {child[0]}", child[1], "", level + 1)


def _parameter(record: tuple[str, str]) -> tuple[str, str, str]:
    """Split what ``--help`` says of an option: its names and value, its text, its default and limits."""
    names, value = re.fullmatch(r"(.*?)(?: <(.+)>)?", record[0]).groups()  # type: ignore[union-attr] - fits anything
    text, limits = re.fullmatch(r"(.*?)(?:  \[(.*)\])?", record[1], re.DOTALL).groups()  # type: ignore[union-attr]
    kind = {"str": "TEXT", "path": "PATH", "int": "N", "float": "NUMBER"}.get((value or "").split(" ")[0], value)
    return f"`{names} {kind}`" if kind else f"`{names}`", text, (limits or "").removeprefix("default: ")


def _programs() -> Iterator[str]:
    for name, command in PROGRAMS.items():
        yield f"### `{name}`\n\n```text\n{help_text(command).rstrip()}\n```\n"


PROGRAMS: dict[str, tuple[str, ...]] = {
    "build-engines.sh": ("sh", str(ROOT / "engines" / "build-engines.sh")),
    "hwmon-power": (sys.executable, "-m", "devit_profiling.sensor.hwmon"),
    "simulated-tegrastats": (sys.executable, "-m", "devit_profiling.simulator.program"),
}
"""Programs that are no commands of typer, and how each is started."""


def help_text(command: tuple[str, ...]) -> str:
    """Ask a program for its help, 100 columns wide."""
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run((*command, "--help"), capture_output=True, text=True, check=True, env=environment).stdout


def _structs(name: str, told: set[type]) -> Iterator[str]:
    module, _, attribute = name.partition(":")
    for struct in structs_within(getattr(importlib.import_module(module), attribute)):
        if struct not in told:
            told.add(struct)
            yield from _struct(struct)


def _struct(struct: type[msgspec.Struct]) -> Iterator[str]:
    docs = dict(field_docs(struct))
    hints = typing.get_type_hints(struct)
    yield f"### {_title(struct)}\n\n{_markdown(inspect.getdoc(struct) or '')}\n"
    rows = []
    for field in msgspec.structs.fields(struct):
        if field.required:
            default = "required"
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _literal(field.default_factory())
        else:
            default = _literal(field.default)
        rows.append((f"`{field.encode_name}`", words(hints[field.name]), default, _markdown(docs.get(field.name, ""))))
    yield from _table(("field", "type", "default", "meaning"), rows)


def anchor(struct: type) -> str:
    """Name the place of a struct on its page, as its heading does by itself."""
    return _title(struct).lower()


def _title(struct: type) -> str:
    return struct.__name__.strip("_")


def words(hint: Any) -> str:  # noqa: ANN401 - any annotation
    """Say a type as a reader of the file needs it.

    >>> words(tuple[int, ...]), words(dict[str, float]), words(str | None)
    ('list of whole number', 'table of number', 'text or null')
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(argument) for argument in arguments)
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        is_list = len(arguments) == 2 and arguments[1] is Ellipsis
        return f"list of {words(arguments[0])}" if is_list else f"list: {', '.join(map(words, arguments))}"
    if origin in (list, dict) or getattr(origin, "__name__", "") in ("Mapping", "Sequence"):
        return f"{'list' if len(arguments) == 1 else 'table'} of {words(arguments[-1])}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return f"[{_title(hint)}](#{anchor(hint)})"
    return _WORDS[hint]


_WORDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    bytes: "base64",
}


def _literal(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return "its defaults"
    return f"`{msgspec.json.encode(value).decode()}`"


def _members(name: str) -> Iterator[str]:
    """Make a table of an enum: the first sentence below a member is its meaning, the rest says what to do."""
    module, _, attribute = name.partition(":")
    kind: type[enum.Enum] = getattr(importlib.import_module(module), attribute)
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    rows = []
    for member, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
            value = kind[member.targets[0].id].value
            if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
                raise ValueError(f"{name}: {value}: expected a docstring")
            meaning, _, rest = " ".join(str(below.value.value).split()).partition(". ")
            rows.append((f"`{value}`", meaning.rstrip("."), rest.rstrip(".")))
    yield from _table(("word", "meaning", "what to do"), rows)


def _docstring(name: str) -> str:
    """Show a module's docstring below its first line, with its tables and its literal blocks."""
    text = inspect.getdoc(importlib.import_module(name)) or ""
    return "\n".join(_blocks(text.partition("\n")[2]))


def _blocks(text: str) -> Iterator[str]:
    """Turn the blocks of reStructuredText that docstrings here have into those of Markdown."""
    for block in re.split(r"\n\n(?=\S)", text.strip("\n")):
        paragraph, is_literal, literal = re.fullmatch(r"(.*?)(::)?(?:\n\n((?: .*|\n)+))?", block, re.DOTALL).groups()  # type: ignore[union-attr] - fits anything
        if block.startswith("=="):
            yield from _table(*_simple_table(block.splitlines()))
        elif is_literal:
            yield from ([f"{_markdown(paragraph)}:\n"] if paragraph else [])
            yield f"```text\n{inspect.cleandoc(literal)}\n```\n"
        else:
            yield f"{_markdown(block)}\n"


def _simple_table(lines: list[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Read a table between rulers; a line without a first cell goes on with the row above it."""
    columns = [slice(*match.span()) for match in re.finditer("=+", lines[0])]
    columns[-1] = slice(columns[-1].start, None)
    rows: list[list[str]] = []
    for line in lines[1:-1]:
        cells = [line[column].strip() for column in columns]
        if line[0] == " ":
            rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], cells, strict=True)]
        elif line[0] != "=":
            rows.append(cells)
    header, *body = ([_markdown(cell) for cell in row] for row in rows)
    return tuple(header), [tuple(row) for row in body]


def _kinds(name: str) -> Iterator[str]:
    """List a class and all below it in its module, each with what its docstring says; then what the module says."""
    module, _, attribute = name.partition(":")
    loaded = importlib.import_module(module)

    def listed(kind: type, depth: int) -> Iterator[str]:
        yield f"{'  ' * depth}- `{kind.__name__}`: {_markdown(inspect.getdoc(kind) or '')}"
        for below in kind.__subclasses__():
            if below.__module__ == module:
                yield from listed(below, depth + 1)

    yield from listed(getattr(loaded, attribute), 0)
    yield f"\n{_markdown((inspect.getdoc(loaded) or '').partition(chr(10))[2])}"


def _paragraph(start: str) -> str:
    """Take over what the README says, by its first words, up to an empty line."""
    _, found, rest = (ROOT / "README.md").read_text().partition(f"\n\n{start}")
    if not found:
        raise ValueError(f"README.md: expected a paragraph that begins with {start!r}, found none")
    return start + rest.partition("\n\n")[0]


def _no_roles(text: str) -> str:
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"``\1``", text)


def _markdown(text: str) -> str:
    """Turn a docstring into Markdown on as few lines as it has paragraphs."""
    text = re.sub(r"``(.+?)``", r"`\1`", _no_roles(text))
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    rows = list(rows)
    kept = [place for place in range(len(header)) if place == 0 or any(row[place] for row in rows)]
    for cells in (header, ("---",) * len(header), *rows):
        yield "| " + " | ".join(_cell(cells[place]) for place in kept) + " |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    for page in (ROOT / "docs").glob("*.md"):
        page.write_text(refreshed(page.read_text()))
