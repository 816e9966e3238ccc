"""Each check of a way to CUDA passes over a right driver, and fails over one that does just what it is there to find.

The driver is SIMULATED: nothing here shows that a real one is right. ``make test-gpu`` runs the same checks over that.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.engines.fakes.driver import FakeDriver, Fault

from devit_contract.choices import CudaChoice
from devit_contract.errors import DeviceLostError, EngineError
from devit_engines.cuda.api import Cuda
from devit_engines.selftest.device import checks
from devit_engines.selftest.device.checks import CHECKS, lose_context, run_checks
from devit_engines.selftest.device.result import Row


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "REPLAYS", 20)
    monkeypatch.setattr(checks, "_PLAIN_RUNS", 5)


def rows(way: CudaChoice = "ctypes") -> dict[str, Row]:
    found: list[Row] = []
    run_checks(way, found.append)
    assert [row.check for row in found] == list(CHECKS)
    return {row.check: row for row in found}


def failures(way: CudaChoice = "ctypes") -> list[str]:
    return [row.check for row in rows(way).values() if row.verdict == "fail"]


@pytest.mark.parametrize("way", ["ctypes", "cuda-bindings", "pycuda"])
def test_a_right_driver_passes_everything_and_is_used_rightly(monkeypatch: pytest.MonkeyPatch, way: CudaChoice) -> None:
    driver = FakeDriver().install(monkeypatch)
    found = rows(way)
    assert {name: row.note for name, row in found.items() if row.verdict != "pass"} == {}
    assert "ms without a graph" in str(found["graph replay"].note)
    assert (driver.alive(), driver.modules, driver.stack(), driver.holders) == ([], {}, [], 0)
    driver.check()


@pytest.mark.parametrize(
    ("fault", "first", "others"),
    [
        ("pinned-elsewhere", "pinned memory", {"mapped memory", "graph replay"}),
        ("copies-whole-words", "device memory", {"kernel", "two streams"}),
        ("launch-fails", "kernel", set()),
        ("mapped-elsewhere", "mapped memory", {"graph, mapped"}),
        ("queue-reversed", "kernel", {"stream order", "two streams"}),
        ("replays-first-image", "graph replay", {"two threads"}),
        ("no-capture", "graph replay", {"graph, mapped"}),
        ("release-ends-context", "two threads", {"garbage collection"}),
        ("leaks", "memory returned", set()),
    ],
)
def test_a_driver_at_fault_fails_the_check_that_is_there_for_it(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, first: str, others: set[str]
) -> None:
    FakeDriver().install(monkeypatch).faults.add(fault)
    found = failures()
    assert found[0] == first
    assert others <= set(found)
    assert "opens" not in found


def test_an_order_that_is_not_kept_is_no_fault_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver().install(monkeypatch).faults.add("queue-reversed")
    assert not {"pinned memory", "device memory", "mapped memory"} & set(failures())


def test_a_wrong_number_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver().install(monkeypatch).faults.add("copies-whole-words")
    note = str(rows()["two streams"].note)
    assert note.endswith("found 205; 1 of 8388609 values are wrong: report this")
    assert " at 8388608, " in note, "the last byte, which fills no word"


def test_after_a_lost_gpu_the_rest_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver().install(monkeypatch).faults.add("launch-fails")
    verdicts = [row.verdict for row in rows().values()]
    where = verdicts.index("fail")
    assert verdicts == ["pass"] * where + ["fail"] + ["skipped"] * (len(CHECKS) - where - 1)


def test_a_gpu_that_cannot_map_memory_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver(can_map=False).install(monkeypatch)
    found = rows()
    skipped = {name: row.note for name, row in found.items() if row.verdict == "skipped"}
    assert skipped == dict.fromkeys(("mapped memory", "graph, mapped"), "this GPU cannot map memory of the CPU")
    assert failures() == []


@pytest.mark.parametrize("code", [209, 218, 221, 222])
def test_a_kernel_that_the_driver_cannot_compile_says_what_to_do(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    driver = FakeDriver().install(monkeypatch)
    driver.fail("cuModuleLoadData", code)
    (row,) = [row for row in rows().values() if row.verdict == "fail"]
    assert row.check == "kernel"
    assert f"({code}): " in str(row.note)
    assert "run devit doctor" not in str(row.note)
    driver.check()


def test_a_driver_older_than_the_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver that has all functions is, so that the simulated one has to pretend."""
    driver = FakeDriver().install(monkeypatch)
    driver.version = 7050
    assert "UNSUPPORTED_PTX_VERSION (222): update the driver" in str(rows()["kernel"].note)


@pytest.mark.parametrize("way", ["ctypes", "cuda-bindings", "pycuda"])
def test_a_kernel_that_traps_loses_cuda(monkeypatch: pytest.MonkeyPatch, way: CudaChoice) -> None:
    driver = FakeDriver().install(monkeypatch)
    with pytest.raises(DeviceLostError, match=r"cuStreamSynchronize: .*LAUNCH_FAILED \(719\).* start it again") as lost:
        lose_context(way)
    assert "\n" not in str(lost.value)
    driver.check()


def test_a_trap_that_nobody_notices_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver().install(monkeypatch).faults.add("trap-ignored")
    with pytest.raises(EngineError, match="expected cuStreamSynchronize to fail") as found:
        lose_context("ctypes")
    assert not isinstance(found.value, DeviceLostError)


def test_our_own_mistakes_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread is let in, and what is closed goes to the driver all the same."""
    FakeDriver().install(monkeypatch)
    checked = Cuda._check_use

    def careless(self: Cuda, function: str) -> None:
        if threading.current_thread() is self._owner and not self._is_closed:
            checked(self, function)

    monkeypatch.setattr(Cuda, "_check_use", careless)
    found = rows()
    assert {name for name, row in found.items() if row.verdict == "fail"} == {"two threads", "use after close"}


def test_a_check_compares_every_value() -> None:
    wanted = np.arange(6, dtype=np.float32)
    checks._compare("nothing", wanted.copy(), wanted)
    with pytest.raises(EngineError, match=r"it: expected 5.0 at 5, found 7.0; 1 of 6 values are wrong"):
        checks._compare("it", np.float32([0, 1, 2, 3, 4, 7]), wanted)
    with pytest.raises(EngineError, match="found nan"):
        checks._compare("it", np.full(6, np.nan, np.float32), wanted)
