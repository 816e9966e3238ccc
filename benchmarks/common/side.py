"""Another version's programs, or our own, in a process of that version's Python which answers requests line by line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


class Side:
    """One version; a context manager."""

    def __init__(self, name: str, python: Path, script: Path, *arguments: Path | str) -> None:
        """Start the script, and wait for its first line."""
        self.name = name
        # Caches of bytecode are part of an installation, so they are here.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self._child = subprocess.Popen(
            [python, script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._line()

    def __enter__(self) -> Side:
        """Give the side."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, which ends what it started."""
        self._child.communicate()

    def ask(self, request: str) -> Any:  # noqa: ANN401 - what the script answers
        """Send a line, and take the JSON that comes back."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{request}\n")
        self._child.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"side {self.name} ended: see above")
        return line
