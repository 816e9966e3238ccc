"""Changes of the devices and clients in ``fleet.toml``; all else in it stays as it was written, comments too."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Comment, Table, Whitespace

from devit_contract.artefacts.files import exclusive_lock, named_failure, read_bytes, write_bytes
from devit_contract.artefacts.fleet import ClientEntry, Device, load_fleet, to_fleet
from devit_contract.errors import InputError, ManifestError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Kind = Literal["device", "client"]
Member = Device | ClientEntry
_HINT = "see examples/fleet.toml"


def add_device(path: Path, device: Device) -> None:
    """Write a new device behind the others.

    Raises:
        InputError: The file cannot be read or written, or the fleet would not be usable; the file is as it was.
        ManifestError: The same, where its format would be broken.
    """
    add_member(path, "device", device)


def remove_device(path: Path, name: str) -> None:
    """Take a device out; it raises what :func:`add_device` does."""
    remove_member(path, "device", name)


def replace_device(path: Path, name: str, device: Device) -> None:
    """Put a device into the place of another one; it raises what :func:`add_device` does."""
    replace_member(path, "device", name, device)


def add_member(path: Path, kind: Kind, member: Member) -> None:
    """Write a new device or client behind the others, as :func:`add_device` does."""

    def change(tables: tomlkit.TOMLDocument) -> None:
        new = tomlkit.table()
        for field, value in _fields(member).items():
            new.add(field, value)
        if kind not in tables:
            tables.append(kind, tomlkit.aot())
        there = _tables(path, tables, kind)
        last: Table | tomlkit.TOMLDocument = there[-1] if len(there) else tables
        tail = _take_tail(last) if isinstance(last, Table) else []
        new.add(tomlkit.nl())
        for item in tail[1:]:  # the comment above what follows; a blank line is there already
            new.add(item)
        if isinstance(last, Table) or not tables.as_string().endswith("\n\n"):
            new.trivia.indent = "\n"
        there.append(new)

    _edit(path, kind, lambda members: [*members, member], change)


def remove_member(path: Path, kind: Kind, name: str) -> None:
    """Take a device or client out, as :func:`remove_device` does."""
    marker = f"# {secrets.token_hex(16)}"

    def change(tables: tomlkit.TOMLDocument) -> None:
        table = _find(path, tables, kind, name)
        tail = _take_tail(table)
        for field in list(table):
            table.remove(field)
        table.value.body.clear()
        for item in tail:
            table.add(item)
        table.trivia.comment_ws, table.trivia.comment = " ", marker

    def without(members: Sequence[Member]) -> list[Member]:
        left = [member for member in members if member.name != name]
        if kind == "device" and not left:
            raise InputError(f"{path}: {name} is its last device: add or replace one instead")
        return left

    _edit(path, kind, without, change, marker)


def replace_member(path: Path, kind: Kind, name: str, member: Member) -> None:
    """Put a device or client into the place of another one, as :func:`replace_device` does."""

    def change(tables: tomlkit.TOMLDocument) -> None:
        table, fields = _find(path, tables, kind, name), _fields(member)
        for field in set(table) - set(fields):
            table.remove(field)
        tail = _take_tail(table)
        for field, value in fields.items():
            if field not in table:
                table.add(field, value)
            elif table[field] != value:
                table[field] = value
        for item in tail:
            table.add(item)

    def replaced(members: Sequence[Member]) -> list[Member]:
        return [member if each.name == name else each for each in members]

    _edit(path, kind, replaced, change)


def _edit(
    path: Path,
    kind: Kind,
    expect: Callable[[Sequence[Member]], list[Member]],
    change: Callable[[tomlkit.TOMLDocument], None],
    marker: str = "",
) -> None:
    """Put a changed file in place if it says what is expected; a line that ends with ``marker`` is left out."""
    with named_failure(f"{path}: cannot be read", _HINT), exclusive_lock(path.parent):
        before, text = load_fleet(path), read_bytes(path, _HINT).decode("utf-8-sig")
        expected, found = tuple(expect(getattr(before, kind))), path.stat()
        try:
            tables = tomlkit.parse(text)
            if tables.as_string() != text:
                raise _own_form(path)
            change(tables)
        except TOMLKitError as err:
            raise ManifestError(f"{path}: cannot be changed ({err}): change it by hand") from err
        changed = _without(marker, tables.as_string()) if marker else tables.as_string()
        if to_fleet(path, tomllib.loads(changed)) != msgspec.structs.replace(before, **{kind: expected}):
            raise _own_form(path)
        # The node may be another user, who has to be able to read it still.
        write_bytes(path, changed.encode(), mode=found.st_mode & 0o7777)
        with suppress(PermissionError):
            os.chown(path, found.st_uid, found.st_gid)


def _fields(member: Member) -> dict[str, str | int]:
    """Give what is written of a member: what has no default, and what differs from it."""
    fields = msgspec.structs.fields(type(member))
    values = {field.name: getattr(member, field.name) for field in fields}
    return {field.name: values[field.name] for field in fields if field.required or values[field.name] != field.default}


def _tables(path: Path, tables: tomlkit.TOMLDocument, kind: Kind) -> AoT:
    found = tables[kind]
    if not isinstance(found, AoT):
        raise _own_form(path)
    return found


def _find(path: Path, tables: tomlkit.TOMLDocument, kind: Kind, name: str) -> Table:
    there: list[Table] = list(_tables(path, tables, kind)) if kind in tables else []
    for table in there:
        if table.get("name") == name:
            return table
    known = ", ".join(table["name"] for table in there) or "one that is there"
    raise InputError(f"{path}: {kind} {name!r}: expected one of {known}")


def _take_tail(table: Table) -> list[Whitespace | Comment]:
    """Cut off what belongs to what follows: from the first blank line after the last field."""
    body = table.value.body
    last = max((place for place, (key, _) in enumerate(body) if key is not None), default=-1)
    blank = next((place for place in range(last + 1, len(body)) if isinstance(body[place][1], Whitespace)), len(body))
    tail = [item for _, item in body[blank:] if isinstance(item, (Whitespace, Comment))]
    del body[blank:]
    return tail


def _without(marker: str, text: str) -> str:
    """Leave out the line that ends with the marker, and one of the blank lines that then meet."""
    lines = text.splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if line.rstrip().endswith(marker))
    around = lines[place - 1 : place] + lines[place + 1 : place + 2]
    del lines[place : place + (2 if len(around) == 2 and not any(line.strip() for line in around) else 1)]
    return "".join(lines)


def _own_form(path: Path) -> ManifestError:
    return ManifestError(f"{path}: expected [[device]] one after the other, then [[client]]: {_HINT}")
