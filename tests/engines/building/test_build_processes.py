"""Builds in several processes, and builds that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EngineError
from devit_engines.board import Board
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store

CHILD = Path(__file__).with_name("child_build.py")
pytestmark = pytest.mark.timeout(60)


@contextmanager
def child(bundle: Bundle, store: Store, moment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a build in a process of its own; it does not outlive the block."""
    command = [sys.executable, str(CHILD), str(bundle.folder), str(store.folder), moment]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_builders_of_one_key_one_builds_and_the_other_waits_for_it(tiny: Bundle, store: Store) -> None:
    with child(tiny, store, "pause") as first:
        assert line(first) == "building"
        with child(tiny, store, "pause") as second:
            assert line(second) == "waiting"
            assert first.stdin is not None
            first.stdin.write("go on\n")
            first.stdin.flush()
            word, key = line(first).split()
            assert word == "built"
            assert line(second) == f"cached {key}"
            assert (first.wait(), second.wait()) == (0, 0)


def test_a_builder_that_was_killed_hands_its_key_to_the_one_that_waits(tiny: Bundle, store: Store) -> None:
    """A lock file that only says "taken" would block the key for ever."""
    with child(tiny, store, "pause") as first:
        assert line(first) == "building"
        with child(tiny, store, "straight") as second:
            assert line(second) == "waiting"
            first.kill()
            assert line(second).startswith("built ")


@pytest.mark.parametrize(
    "moment", ["in the build", "in the middle of the model", "before the record", "before the rename"]
)
def test_kill_9_in_a_build_leaves_nothing_that_loads_and_the_next_build_works(
    tiny: Bundle, store: Store, board: Board, moment: str
) -> None:
    with child(tiny, store, moment) as process:
        assert process.wait() == -signal.SIGKILL
    assert store.entries() == []
    with pytest.raises(EngineError, match=r"found none: run devit build .* --submodels 0 --store"):
        load_engine(tiny, store, 0, board=board)
    (built,) = build_engines(tiny, store, submodels=[0], board=board)
    assert not built.was_cached
    assert store.leftovers() == []
    with load_engine(tiny, store, 0, board=board) as engine:
        engine.warm_up(1)


def test_a_hit_imports_no_back_end(tiny: Bundle, store: Store, board: Board) -> None:
    """Asking whether an engine is there must not cost the start of a library."""
    build_engines(tiny, store, submodels=[0], board=board)
    script = f"""
import sys
sys.path.insert(0, {str(CHILD.parent)!r})
import child_build
child_build.main({str(tiny.folder)!r}, {str(store.folder)!r}, "straight")
print(sorted({{"onnxruntime", "tensorrt", "typer", "rich"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    word, _, imported = done.stdout.split(maxsplit=2)
    assert (word, imported) == ("cached", "[]\n")
