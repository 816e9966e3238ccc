"""A build in its own process: watched, killed, cancelled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.engines.fakes.fake_tensorrt import VERSIONS

from devit_contract.errors import EngineError, InputError
from devit_engines.trt.child import build_in_child, workspace_bytes
from devit_engines.trt.worker import WorkerRequest

FAKES = Path(__file__).parents[1] / "fakes"
TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
PLAIN, TYPED = ((TINY / f"submodel-0.{rung}.onnx").read_bytes() for rung in ("fp32", "fp16"))
MIB = 1 << 20
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found: str = request.param
    monkeypatch.setenv("PYTHONPATH", str(FAKES / "site"))
    monkeypatch.setenv("FAKE_TRT_VERSION", found)
    return found


@pytest.fixture
def order(tmp_path: Path) -> WorkerRequest:
    return WorkerRequest("submodel 0", "fp16", (), 256 * MIB, str(tmp_path / "timing" / "cache"))


@pytest.fixture
def drafts(tmp_path: Path) -> Path:
    return tmp_path / "store" / ".key."


def silent(elapsed_s: float, doing: str) -> None:
    """Nobody watches."""


def test_a_plan_comes_back_and_the_timing_cache_grows(version: str, order: WorkerRequest, drafts: Path) -> None:
    told: list[str] = []
    plan = build_in_child(order, TYPED, PLAIN, drafts, lambda elapsed_s, doing: told.append(doing))
    assert plan.content.startswith(b"ftrt")
    assert plan.warnings == ()
    assert told[0] == "starting TensorRT"
    assert ("Tactic Selection" in told) == (version != "8.6.1")
    first = Path(order.timing_cache).read_bytes()
    build_in_child(order, TYPED, PLAIN, drafts, silent)
    assert len(Path(order.timing_cache).read_bytes()) > len(first)


def test_two_builds_at_once_both_leave_their_timings(version: str, order: WorkerRequest, drafts: Path) -> None:
    threads = [threading.Thread(target=build_in_child, args=(order, TYPED, PLAIN, drafts, silent)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Path(order.timing_cache).read_bytes().count(b",") >= 2


def test_a_build_that_the_kernel_killed_is_repeated_with_less(
    version: str, order: WorkerRequest, drafts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_KILL_ABOVE", str(128 * MIB))
    told: list[str] = []
    plan = build_in_child(order, TYPED, PLAIN, drafts, lambda elapsed_s, doing: told.append(doing))
    note = "the kernel killed the first build (workspace 256 MiB), repeated with 64 MiB"
    assert plan.warnings == (note,)
    assert note in told


def test_a_build_that_the_kernel_killed_twice_is_an_error(
    version: str, order: WorkerRequest, drafts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_KILL_ABOVE", "1")
    with pytest.raises(EngineError, match="killed the build twice, with 256 and 64 MiB of workspace"):
        build_in_child(order, TYPED, PLAIN, drafts, silent)


def test_tensorrts_own_words_come_through(
    version: str, order: WorkerRequest, drafts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_FAIL", "out of luck")
    with pytest.raises(EngineError, match="out of luck"):
        build_in_child(order, TYPED, PLAIN, drafts, silent)


def test_no_tensorrt_is_one_line(order: WorkerRequest, drafts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(EngineError, match=r"cannot import TensorRT .*run devit doctor"):
        build_in_child(order, TYPED, PLAIN, drafts, silent)


def test_ctrl_c_ends_the_build_process_and_leaves_nothing(
    version: str, order: WorkerRequest, drafts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal goes to the whole group, as a terminal sends it."""
    script = f"""
import sys
from pathlib import Path
from devit_engines.trt.child import build_in_child
from devit_engines.trt.worker import WorkerRequest
graph, plain = (Path({str(TINY)!r}, f"submodel-0.{{rung}}.onnx").read_bytes() for rung in ("fp16", "fp32"))
def report(elapsed_s, doing):
    if elapsed_s > 1.0:
        print("building", flush=True)
try:
    order = WorkerRequest("submodel 0", "fp16", (), 1 << 28, {order.timing_cache!r})
    build_in_child(order, graph, plain, Path({str(drafts)!r}), report)
except KeyboardInterrupt:
    sys.exit(130)
"""
    settings = os.environ | {"FAKE_TRT_STEPS": "2000", "FAKE_TRT_STEP_S": "0.05"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=settings, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"building\n"
            os.killpg(process.pid, signal.SIGINT)
            process.stdout.read()
            assert process.wait(60) == 130
            with pytest.raises(ProcessLookupError):  # nobody of the group is left
                os.killpg(process.pid, 0)
        finally:
            process.kill()
    assert list(drafts.parent.iterdir()) == []


@pytest.mark.parametrize(("available_kb", "expected"), [(100, 64 * MIB), (4 << 20, 1024 * MIB), (64 << 20, 4096 * MIB)])
def test_the_workspace_is_a_quarter_of_free_memory_within_bounds(
    tmp_path: Path, available_kb: int, expected: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {available_kb} kB\n")
    assert workspace_bytes(tmp_path) == expected


def test_unknown_memory_is_an_error_and_not_a_guess(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no line MemAvailable"):
        workspace_bytes(tmp_path)


@pytest.mark.system
def test_a_build_ends_soon_after_its_parent_was_killed(
    order: WorkerRequest, drafts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT may be silent for minutes; until its process ends, the next build would share memory with it."""
    monkeypatch.setenv("PYTHONPATH", str(FAKES / "site"))
    monkeypatch.setenv("FAKE_TRT_VERSION", "10.3.0")
    script = f"""
from pathlib import Path
from devit_engines.trt.child import build_in_child
from devit_engines.trt.worker import WorkerRequest
graph, plain = (Path({str(TINY)!r}, f"submodel-0.{{rung}}.onnx").read_bytes() for rung in ("fp16", "fp32"))
def report(elapsed_s, doing):
    if elapsed_s > 1.0:
        print("building", flush=True)
order = WorkerRequest("submodel 0", "fp16", (), 1 << 28, {order.timing_cache!r})
build_in_child(order, graph, plain, Path({str(drafts)!r}), report)
"""
    settings = os.environ | {"FAKE_TRT_STEPS": "2", "FAKE_TRT_STEP_S": "600"}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=settings) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    deadline_s = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline_s
        os.sched_yield()
    assert [path.name.startswith(".key.") for path in drafts.parent.iterdir()] == [True]  # for the next lock to sweep


def test_no_room_for_the_draft_is_one_line(order: WorkerRequest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        build_in_child(order, TYPED, PLAIN, tmp_path / "file" / ".key.", silent)


def test_timings_that_cannot_be_written_are_a_warning(version: str, tmp_path: Path, drafts: Path) -> None:
    (tmp_path / "timing").write_text("a file in the way")
    order = WorkerRequest("submodel 0", "fp16", (), 256 * MIB, str(tmp_path / "timing" / "cache"))
    plan = build_in_child(order, TYPED, PLAIN, drafts, silent)
    (warning,) = plan.warnings
    assert "timing" in warning
