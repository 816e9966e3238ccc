"""The instructions of a Dockerfile, as far as those of docker/ go, and the values of its variables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction, its lines joined."""

    name: str
    text: str
    """All behind the name."""


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    """Empty where it has none."""
    instructions: tuple[Instruction, ...]


def read_stages(path: Path) -> tuple[list[Instruction], list[Stage]]:
    """Give the ARGs before the first FROM, and all stages."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    instructions = [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]
    starts = [index for index, instruction in enumerate(instructions) if instruction.name == "FROM"]
    stages = []
    for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True):
        base, _, name = instructions[start].text.partition(" AS ")
        stages.append(Stage(base, name, tuple(instructions[start + 1 : end])))
    return instructions[: starts[0]], stages


def expand(text: str, variables: dict[str, str]) -> str:
    """Put in the values of ``$NAME``, ``${NAME}`` and ``${NAME:-default}``.

    Raises:
        KeyError: One has neither value nor default.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[3]
        if variables.get(name):
            return variables[name]
        return variables[name] if found[2] is None else found[2]

    return _VARIABLE.sub(value, text)


def copied_sources(path: Path) -> list[str]:
    """Name what a Dockerfile copies out of the repository."""
    _, stages = read_stages(path)
    copies = [one.text for stage in stages for one in stage.instructions if one.name == "COPY"]
    return [source for text in copies if not text.startswith("--from") for source in text.split()[:-1]]
