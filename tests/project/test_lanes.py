"""Lanes of tests name what is there, and what a session makes once is made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.lanes import APART, LONG, MACHINE, TOGETHER, lane

ROOT = Path(__file__).parents[2]


def test_a_lane_holds_folders_and_files_that_are_there() -> None:
    assert [name for name in (*MACHINE, *TOGETHER, *APART, *LONG[1:]) if not (ROOT / name).exists()] == []


def test_a_test_is_in_the_lane_of_its_folder_or_of_its_file() -> None:
    assert lane("tests/fusion/test_node.py::test_it[a/b]") == "machine"
    assert lane("tests/export/test_cli.py::test_it") == "tests/export/"
    assert lane("tests/project/test_light_install.py::test_it") == "tests/project/test_light_install.py::test_it"
    assert lane("tests/contract/artefacts/test_head.py::test_it") == "tests/contract/artefacts/test_head.py"


MAKER = """
import sys, pathlib
from types import SimpleNamespace
from tests.support.once import made_once
base = pathlib.Path(sys.argv[1])
factory = SimpleNamespace(getbasetemp=lambda: base / "worker")
worker = SimpleNamespace(config=SimpleNamespace(workerinput={}), getfixturevalue=lambda name: factory)
def make(folder):
    with (base / "log").open("a") as log:
        log.write("made\\n")
    (folder / "whole").touch()
assert (made_once(worker, "store", make) / "whole").exists()
"""


def test_of_workers_that_want_one_folder_one_makes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    children = [subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"
