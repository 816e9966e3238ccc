"""A minute of fuzzing what reads bytes from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_wire.py")
SECONDS = 60

pytestmark = [pytest.mark.nightly(part="endurance"), pytest.mark.timeout(180)]


def test_a_minute_of_fuzzing_finds_no_bytes_that_do_more_than_be_refused(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    fuzz = [sys.executable, str(SCRIPT), str(corpus), f"-max_total_time={SECONDS}", "-print_final_stats=1"]
    # Through a shell: the kernel hands the peak memory of this process down to its child, and no further.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *fuzz]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS + 60, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert runs is not None, done.stderr[-4000:]
    print(f"{int(runs[1]):,} inputs, {len(list(corpus.iterdir()))} of them kept")
    assert int(runs[1]) > 10_000
