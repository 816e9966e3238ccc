"""JSON Schema of ``report.json`` and of what ``compare`` prints, made from the structs that write them.

The descriptions are the docstrings of structs and fields. ``python docs/schema.py docs`` writes both.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import write_bytes
from devit_profiling.figures.analysis import Report
from devit_profiling.figures.compare import Comparison

SCHEMAS: dict[str, type[msgspec.Struct]] = {
    "report.schema.json": Report,
    "comparison.schema.json": Comparison,
}
"""File name to the struct that it describes."""


def schema_bytes(kind: type[msgspec.Struct]) -> bytes:
    """Describe a struct, the same bytes for the same struct."""
    schema = msgspec.json.schema(kind)
    for struct in sorted(set(structs_within(kind)), key=lambda struct: struct.__name__):
        described = schema["$defs"][struct.__name__]
        described["description"] = _plain(described.get("description", ""))
        for field, text in field_docs(struct):
            described["properties"][field]["description"] = _plain(text)
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def main() -> None:
    """Write both files into the given folder."""
    folder = Path(sys.argv[1])
    for name, kind in SCHEMAS.items():
        write_bytes(folder / name, schema_bytes(kind))


def structs_within(kind: object) -> Iterator[type[msgspec.Struct]]:
    """Find a struct and all that its fields hold."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from structs_within(hint)
    for part in typing.get_args(kind):
        yield from structs_within(part)


def field_docs(struct: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    """Read the strings below the fields, which Python itself does not keep."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
            continue
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            yield field.target.id, str(below.value.value)


def _plain(text: str) -> str:
    """Write a docstring without the marks of its markup, in one line."""
    text = re.sub(r":\w+:`~?(?:\w*\.)*(\w+)`", r"\1", text).replace("``", "")
    return " ".join(text.split())


if __name__ == "__main__":
    main()
