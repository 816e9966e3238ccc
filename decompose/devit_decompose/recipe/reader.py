"""Reads a recipe from its TOML file, with the files it builds on and the changes of the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from devit_contract.artefacts.files import convert, read_toml_tables
from devit_contract.errors import InputError
from devit_decompose.recipe.schema import HINT, SCHEMA, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_recipe(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` changes, e.g. ``train.decay_epochs=2`` or ``students.0.depth=1``.

    A recipe may name others in ``base``, a list of file names beside it: their tables come first, in order, and its
    own entries replace theirs.

    Raises:
        InputError: The file cannot be read or a change is not ``key=value`` with a TOML value.
        ManifestError: The file or a changed field breaks the format.
    """
    recipe = convert(path, _joined(path, ()), Recipe, schema=SCHEMA, hint=HINT)
    if not changes:
        return recipe
    raw: dict[str, Any] = msgspec.to_builtins(recipe)
    for change in changes:
        _apply(raw, change)
    try:
        return msgspec.convert(raw, Recipe)
    except msgspec.ValidationError as err:
        raise InputError(f"--set {' '.join(changes)}: {err}: {HINT}") from err


def _joined(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    own = read_toml_tables(path, HINT)
    bases = own.pop("base", [])
    if path.resolve() in above:
        raise InputError(f"{path}: field base: expected files that do not lead back, found a circle: {HINT}")
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise InputError(f"{path}: field base: expected a list of file names, found {bases!r}: {HINT}")
    whole: dict[str, Any] = {}
    for name in bases:
        whole = _merged(whole, _joined(path.parent / name, (*above, path.resolve())))
    return _merged(whole, own)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    whole = dict(under)
    for key, value in over.items():
        old = whole.get(key)
        whole[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return whole


def _apply(raw: dict[str, Any], change: str) -> None:
    key, separator, text = change.partition("=")
    *folders, name = key.strip().split(".")
    place: Any = raw
    for folder in folders:
        place = _inside(place, folder)
    is_known = isinstance(place, dict) and name in place
    if not separator or not is_known:
        raise InputError(f"--set {change}: expected key=value with a key of the recipe, e.g. train.decay_epochs=2")
    try:
        place[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as err:
        raise InputError(f"--set {change}: expected a TOML value (text in quotes), found {text!r}") from err


def _inside(place: Any, name: str) -> Any:  # noqa: ANN401 - any TOML value
    if isinstance(place, dict):
        return place.get(name)
    if isinstance(place, list | tuple) and name.isdigit() and int(name) < len(place):
        return place[int(name)]
    return None
