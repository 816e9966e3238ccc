"""Another Pillow makes the same images: a workstation, a client and a device need not have the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TESTS = "tests/contract/artefacts/test_preprocess.py"

pytestmark = [pytest.mark.nightly(part="installs"), pytest.mark.timeout(600)]


@pytest.mark.parametrize("wanted", ["pillow==10.*", "pillow==12.*", "pillow>=13"])
def test_the_golden_pictures_give_the_golden_bytes_with(wanted: str, tmp_path: Path) -> None:
    """Python 3.10, JetPack 6's, cannot have Pillow 13, which scales the other side first."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(tmp_path)]
    done = subprocess.run([*install, "--no-deps", wanted], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0 and "No matching distribution" in done.stderr:
        pytest.skip(f"no {wanted} for this Python here")
    assert done.returncode == 0, done.stderr
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "golden or width", TESTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(f"{wanted}: {tests.stdout.splitlines()[-1]}")
    assert tests.returncode == 0, tests.stdout
    assert "passed" in tests.stdout
