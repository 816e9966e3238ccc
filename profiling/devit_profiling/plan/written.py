"""Writes a choice into a copy of ``fleet.toml``: the node reads it as it reads any."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.errors import ManifestError
from devit_profiling.plan.figures import Figures, Promise

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Table = Mapping[str, str | float | bool | list[int]]
"""Words, numbers and lists of them: what needs no escapes."""


def write_fleet(fleet: Path, out: Path, picked: Figures, promise: Promise, deadline_ms: float) -> None:
    """Copy a fleet file with the lines of the picked mode; comments and all other lines stay.

    A shorter ``deadline_ms`` of the file is raised to that of the goal, which would end frames too early.

    Raises:
        InputError: The copy cannot be written.
        ManifestError: The file is written in a way that these lines cannot be put into.
    """
    text = fleet.read_text("utf-8")
    changed, expected = text, tomllib.loads(text)
    tables = tables_of(picked, promise)
    if load_fleet(fleet).serving.deadline_ms < deadline_ms:
        tables["serving"] = {**tables["serving"], "deadline_ms": deadline_ms}
    for section, values in tables.items():
        changed = _with(changed, section, values)
        expected[section] = {**expected.get(section, {}), **values}
    if _read(changed) != expected:
        raise ManifestError(
            f"{fleet}: expected its sections as [serving] and [certain], found another form: write them so"
        )
    write_bytes(out, changed.encode())


def tables_of(picked: Figures, promise: Promise) -> dict[str, _Table]:
    """Give the sections and their values."""
    certain: dict[str, str | float | bool | list[int]] = {"early_release": picked.early_release}
    if picked.policy == "certain" or picked.early_release:
        certain |= {"flips": promise.flips, "confidence": promise.confidence}
    if picked.policy == "certain":
        certain |= {"stages": list(picked.stages), "order": picked.order}
    return {"serving": {"policy": picked.policy}, "certain": certain}


def toml_lines(values: _Table) -> list[str]:
    """Write values as TOML.

    >>> toml_lines({"policy": "certain", "stages": [1, 1], "early_release": False})
    ['policy = "certain"', 'stages = [1, 1]', 'early_release = false']
    """
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _with(text: str, section: str, values: _Table) -> str:
    """Put values into a section, in the place of those that are there."""
    lines = text.splitlines()
    if f"[{section}]" not in [line.split("#")[0].strip() for line in lines]:
        return "\n".join([*lines, "", f"[{section}]", *toml_lines(values), ""])
    kept: list[str] = []
    is_inside = False
    for line in lines:
        header = line.split("#")[0].strip()
        if header.startswith("["):
            is_inside = header == f"[{section}]"
        elif is_inside and re.split(r"\s*=", line.strip(), maxsplit=1)[0] in values:
            continue
        kept.append(line)
        if header == f"[{section}]":
            kept += toml_lines(values)
    return "\n".join([*kept, ""])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _read(text: str) -> object:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
