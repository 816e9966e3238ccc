"""The extras of this package: what each brings, asked for before a command starts its work; what is installed."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Literal

from devit_contract.errors import InputError

Extra = Literal["cli", "agent", "fusion", "pair", "http", "profile", "record", "demo", "decompose", "timm", "export"]
"""As ``pyproject.toml`` names them."""

PACKAGES: dict[Extra, tuple[str, ...]] = {
    "cli": ("rich", "typer"),
    "agent": ("onnxruntime",),
    "fusion": ("tomlkit",),
    "pair": ("spake2", "cryptography"),
    "http": ("prometheus_client", "starlette", "uvicorn"),
    "profile": ("jinja2", "matplotlib"),
    "record": ("mcap", "zstandard"),
    "demo": ("onnxruntime", "tomlkit", "prometheus_client", "starlette", "uvicorn", "jinja2", "matplotlib"),
    "decompose": ("torch", "accelerate"),
    "timm": ("torch", "scipy", "timm", "torchvision"),
    "export": ("torch", "ml_dtypes", "onnx", "onnxruntime", "onnxscript", "onnxsim"),
}
"""What the code that an extra is for imports, from the smallest extra to the largest."""


def require(extra: Extra) -> None:
    """Check that an extra is installed, without loading it: an :class:`InputError` says what is not, and the cure."""
    for package in PACKAGES[extra]:
        if find_spec(package) is None:
            raise InputError(f"{package} is not installed: {_cure(extra)}")


def missing_package(error: ImportError) -> str:
    """Say which package an import has failed for, and what to run; empty if no extra brings it."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in PACKAGES.items():
        if package in packages:
            return f"{package} cannot be imported ({error}): {_cure(extra)}"
    return ""


def package_version(package: str) -> str | None:
    """Read the version of a package off the name of its metadata; ``None`` if it is not installed.

    importlib.metadata says the same, but its import takes 10 ms and 2 MB of every agent. Nothing is kept: a package may
    be replaced while an agent runs.
    """
    wanted = _normal(package)
    for place in sys.path:
        with suppress(OSError):  # an archive, or not there
            for entry in os.listdir(place or "."):  # noqa: PTH208 - hundreds of paths take longer than all the rest
                stem, _, kind = entry.rpartition(".")
                name, _, rest = stem.partition("-")
                if kind in ("dist-info", "egg-info") and rest and _normal(name) == wanted:
                    return rest.partition("-")[0]
    return None


def own_version() -> str:
    """Read the version of this package."""
    version = package_version("devit")
    if version is None:
        raise InputError("devit has no metadata: install it with pip, rather than copy its folders")
    return version


def _normal(name: str) -> str:
    return name.replace("-", "_").replace(".", "_").lower()


def _cure(extra: Extra) -> str:
    if extra == "export" and sys.version_info < (3, 11):
        return "onnxsim has no wheels below Python 3.11: run this in a virtual environment of a later Python"
    # This very Python's, as pip on PATH may belong to another one.
    return f"run {shlex.join([sys.executable, '-m', 'pip', 'install', f'devit[{extra}]'])}"
