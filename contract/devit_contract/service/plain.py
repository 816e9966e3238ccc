"""A service's options as unit files write them, read without typer: its import takes longer than a service's start.

Only ``--name VALUE`` and ``--flag`` are read, by their whole names and each once. Help, mistakes and every other way to
write an option are left to the command line proper.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

Options = Mapping[str, type[str] | type[Path] | type[bool]]
"""What each option becomes, by the name of the parameter; a ``bool`` is a flag."""


def plain_options(
    arguments: Sequence[str], options: Options, required: Collection[str]
) -> dict[str, str | Path | bool] | None:
    """Read a command's arguments, or give ``None`` where the command line proper has to.

    >>> plain_options(["--key", "node", "--stop-with-stdin"], {"key": str, "stop_with_stdin": bool}, ["key"])
    {'key': 'node', 'stop_with_stdin': True}
    >>> plain_options(["--key=node"], {"key": str}, ["key"])
    """
    named = {f"--{name.replace('_', '-')}": name for name in options}
    found: dict[str, str | Path | bool] = {}
    words = iter(arguments)
    for word in words:
        name = named.get(word, "")
        if not name or name in found:
            return None
        if options[name] is bool:
            found[name] = True
        elif (value := next(words, "")) and not value.startswith("-"):
            found[name] = options[name](value)
        else:
            return None
    return found if set(required) <= found.keys() else None
