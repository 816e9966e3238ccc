"""The services of docker/compose.yaml, with its anchors, merges and variables put in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tests.docker.dockerfile import ROOT, expand

COMPOSE = ROOT / "docker" / "compose.yaml"


def load_compose(variables: dict[str, str] | None = None) -> dict[str, Any]:
    """Read the file."""
    found: dict[str, Any] = _expanded(yaml.safe_load(COMPOSE.read_text()), variables or {})
    return found


def services(profile: str = "") -> dict[str, dict[str, Any]]:
    """Give the services of a profile, or all."""
    every: dict[str, dict[str, Any]] = load_compose()["services"]
    return {name: service for name, service in every.items() if profile in ("", *service["profiles"])}


def binds(service: dict[str, Any]) -> list[tuple[Path, str, bool]]:
    """Give folders of this machine that a service sees: path here, path there, read-only."""
    found = []
    for volume in service["volumes"]:
        source, target, *options = volume.split(":")
        if source.startswith("."):
            found.append(((COMPOSE.parent / source).resolve(), target, options == ["ro"]))
    return found


def _expanded(value: Any, variables: dict[str, str]) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(value, str):
        return expand(value, variables)
    if isinstance(value, list):
        return [_expanded(one, variables) for one in value]
    if isinstance(value, dict):
        return {key: _expanded(one, variables) for key, one in value.items()}
    return value
