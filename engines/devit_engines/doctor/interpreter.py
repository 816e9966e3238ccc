"""The Python that runs, or that a test describes: its version, its environment, and which packages it can see."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from devit_contract.machine import read_text


@dataclass(frozen=True)
class Package:
    """An installed distribution."""

    name: str
    version: str
    folder: Path
    """The folder on the path that holds it."""


@dataclass(frozen=True)
class Interpreter:
    """A Python and its path; packages are found by their metadata and never imported."""

    version: tuple[int, int]
    prefix: Path
    """``sys.prefix``: the virtual environment where there is one."""
    paths: tuple[Path, ...]
    """Where it looks for packages, first come first served."""

    @classmethod
    def running(cls) -> Interpreter:
        """Describe the Python that runs this."""
        paths = tuple(Path(entry) for entry in sys.path if entry)
        return cls((sys.version_info.major, sys.version_info.minor), Path(sys.prefix), paths)

    @property
    def label(self) -> str:
        """For people: ``3.10``."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def is_venv(self) -> bool:
        """Whether it runs in a virtual environment."""
        return (self.prefix / "pyvenv.cfg").is_file()

    @property
    def sees_system_packages(self) -> bool:
        """Whether packages outside its own environment are on its path."""
        configuration = read_text(self.prefix / "pyvenv.cfg")
        pattern = r"^include-system-site-packages\s*=\s*true\s*$"
        return not self.is_venv or re.search(pattern, configuration, re.MULTILINE | re.IGNORECASE) is not None

    def packages(self, *names: str) -> list[Package]:
        """Find distributions by name, in the order of the names, then of the path; hidden ones too."""
        paths = [str(path) for path in self.paths]
        return [
            Package(name, distribution.version, Path(str(distribution.locate_file(""))))
            for name in names
            for distribution in distributions(name=name, path=paths)
            if _has_metadata(distribution)
        ]


def _has_metadata(distribution: Distribution) -> bool:
    """Tell a package from what an interrupted uninstall leaves; reading the latter's version fails."""
    return any(distribution.read_text(name) for name in ("METADATA", "PKG-INFO", ""))
