"""A minute of the soak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("soak.py")

pytestmark = [pytest.mark.nightly(part="endurance"), pytest.mark.timeout(180)]


def test_a_minute_of_200_frames_a_second_loses_none_and_leaks_no_memory() -> None:
    command = [sys.executable, str(SCRIPT), "--seconds", "60", "--rate", "200", "--warm-up", "15"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
