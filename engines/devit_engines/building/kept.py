"""Which variant of a model this device runs, chosen by measure: ``choice.<digest>.json`` in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from devit_contract.artefacts.files import read_json, remove_file, write_json
from devit_contract.artefacts.gate import AccuracyResult
from devit_contract.choices import Precision, Preference, Variant
from devit_contract.errors import InputError, ManifestError
from devit_engines.building.latency import mode_name
from devit_engines.building.store import EngineKey, Latency
from devit_engines.building.target import Target
from devit_engines.engine import role_of

SCHEMA = 1
Verdict = Literal["kept", "left", "failed", "not built"]
"""``kept``: it runs from now on; ``left``: it passed, another one is better; ``failed``: the accuracy check; ``not
built``: the back end makes no engine of it."""


class Energy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one answer costs while the device answers one image after the other."""

    j_per_answer: float
    """Of all that ``scope`` names, its idle power included: mean power times time, over the answers."""
    mean_w: float
    scope: str
    """What the sensor measures; joules of different scopes are not comparable."""
    is_simulated: bool = False


class Tried(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One variant that was built, or not, and what came of it."""

    variant: Variant
    verdict: Verdict
    why: str = ""
    """Why it was not kept; empty where it was."""
    digest: str = ""
    """Its key in the store; empty where it did not pass."""
    size_bytes: int | None = None
    accuracy: AccuracyResult | None = None
    """Absent where there was no engine, or where its outputs were not finite."""
    latency: Latency | None = None
    """Measured in turns with the others, if there was a preference."""
    energy: Energy | None = None
    """Absent without a preference, and without a power sensor."""


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``choice.<digest>.json``."""

    schema: int
    digest: str
    """Of the back end's name and the SHA-256 of the model's most exact graph: it names the file."""
    title: str
    """For people: ``submodel 0 of fashion-mnist``."""
    prefer: Preference
    precision: Precision
    """The lowest precision that was tried."""
    backend: str
    backend_version: str
    device_name: str
    compute_capability: str
    run_options: tuple[str, ...]
    """How the engines were run: ``name=value``."""
    created: str
    """UTC, ``2026-01-31T12:00:00Z``."""
    keys: tuple[str, ...]
    """Of all variants that there were to choose from, the keys. The choice holds for these alone."""
    tried: tuple[Tried, ...]
    power_mode: str | None = None
    """As nvpmodel calls it."""

    def __post_init__(self) -> None:
        """Refuse a choice of none, or of several."""
        if (count := sum(tried.verdict == "kept" for tried in self.tried)) != 1:
            raise ValueError(f"tried: expected one variant that is kept, found {count}")

    @property
    def kept(self) -> Tried:
        """The variant that this device runs."""
        return next(tried for tried in self.tried if tried.verdict == "kept")


@dataclass(frozen=True)
class Kept:
    """What the choice for a model means here and now."""

    choice: Choice | None = None
    key: EngineKey | None = None
    """Of the engine that it names; absent where it holds no more, or there is none."""
    doubt: str = ""
    """Why it should be made again, in one line; empty where it need not be."""

    def before(self, keys: Sequence[EngineKey]) -> list[EngineKey]:
        """Put the chosen engine's key before the others."""
        return [*keys] if self.key is None else [self.key, *(key for key in keys if key != self.key)]

    def passed_over(self, why: str, target: Target) -> str:
        """Say that another engine than the chosen one is taken, and what to run."""
        assert self.choice is not None
        chosen = f"{target.name}: {self.choice.kept.variant} was chosen for {self.choice.prefer}"
        return f"{chosen}, but {why}: run {target.command} --prefer {self.choice.prefer}"


def digest_of(target: Target) -> str:
    """Name the choice for a model: other boards and versions of the back end, other calibrations have the same."""
    role, index = role_of(target.model)
    manifest = target.bundle.manifest
    exact = manifest.graph(role, index).variants[-1]
    graph = manifest.file(role, device=index, variant=exact).sha256
    return hashlib.sha256(f"{target.backend.name} {graph}".encode("ascii")).hexdigest()


def path_of(target: Target) -> Path:
    """Name the file of a target's choice."""
    return target.store.folder / f"choice.{digest_of(target)}.json"


def find_kept(target: Target) -> Kept:
    """Read the choice for a model, and tell whether it still holds.

    It holds for the very graphs, board and version of the back end that it was made with. In another power mode it is
    followed still, but ``doubt`` says so.

    Raises:
        ManifestError: The bundle has no variant for the back end.
        EngineError: The back end is not installed.
    """
    path = path_of(target)
    if not path.exists():
        return Kept()
    again = f"run {target.command} --prefer"
    try:
        choice = read_json(path, Choice, schema=SCHEMA, hint=f"{again} latency")
    except (InputError, ManifestError) as err:
        return Kept(doubt=str(err))
    chosen = f"{target.name}: {choice.kept.variant} was chosen for {choice.prefer}"
    keys = replace(target, precision=choice.precision).engine_keys()
    if tuple(key.digest for key in keys) != choice.keys:
        return Kept(choice, doubt=f"{chosen} {_difference(choice, keys[0])}: {again} {choice.prefer}")
    key = next((key for key in keys if key.digest == choice.kept.digest), None)
    if choice.prefer != "accuracy" and choice.power_mode != mode_name():
        where = f"in power mode {choice.power_mode or 'unknown'}, this is {mode_name() or 'unknown'}"
        return Kept(choice, key, f"{chosen} {where}: {again} {choice.prefer}")
    return Kept(choice, key)


def remember(target: Target, choice: Choice) -> None:
    """Write a choice, in the place of an older one.

    Raises:
        InputError: The store cannot be written.
    """
    write_json(path_of(target), choice)


def forget(target: Target) -> None:
    """Remove the choice for a model, if there is one.

    Raises:
        InputError: The store cannot be written.
    """
    if (path := path_of(target)).exists():
        remove_file(path)


def kept_in(folder: Path) -> dict[str, Preference]:
    """Say of the engines of a store, by digest, which are kept for what; a damaged choice keeps none."""
    found = {}
    for path in sorted(folder.glob("choice.*.json")):
        with suppress(InputError, ManifestError):
            choice = read_json(path, Choice, schema=SCHEMA, hint="")
            found[choice.kept.digest] = choice.prefer
    return found


def _difference(choice: Choice, now: EngineKey) -> str:
    then = choice.backend, choice.backend_version, choice.device_name, choice.compute_capability
    here = now.backend, now.backend_version, now.device_name, now.compute_capability
    if then == here:
        return "among other graphs than the bundle's"
    return "with {} {} for {} on {}, this is {} {} for {} on {}".format(*then, *here)
