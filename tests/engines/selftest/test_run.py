"""``devit selftest --device`` as its user runs it, over a SIMULATED driver in every process that it starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from devit_contract.errors import EngineError
from devit_contract.service.progress import no_progress
from devit_engines.cuda.ctypes_driver import PROTOTYPES
from devit_engines.selftest.device import run
from devit_engines.selftest.device.checks import CHECKS
from devit_engines.selftest.device.kernel import KERNEL_PROTOTYPES
from devit_engines.selftest.device.result import DeviceTest, Gpu, Row

LOGS = Path(__file__).parents[2] / "data" / "gpu"
SITE = Path(__file__).parents[1] / "fakes" / "site_cuda"
RUN = """
from devit_contract.service.terminal import run
from devit_engines.selftest.cli import app
run(app, "devit selftest")
"""
NAMES = [*CHECKS, "a kernel traps", "a new process"]


def selftest(*words: str, simulated: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables | ({"PYTHONPATH": str(SITE)} if simulated else {})
    command = [sys.executable, "-c", RUN, "--device", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.system
def test_every_way_is_checked_and_the_table_fits_a_terminal(tmp_path: Path) -> None:
    done = selftest("--out", str(tmp_path / "log.json"), FAKE_CUDA_MISUSE=str(tmp_path / "misuse"))
    assert (done.returncode, done.stderr) == (0, "checks: done\n")
    assert "SIMULATED GPU (sm_87, 8192 MiB, shared with the CPU), driver of CUDA 12.6" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    log = msgspec.json.decode((tmp_path / "log.json").read_bytes(), type=DeviceTest)
    ways = ("ctypes", "cuda-bindings", "pycuda")
    assert [(row.way, row.check) for row in log.rows] == [(way, name) for way in ways for name in NAMES]
    assert {row.verdict for row in log.rows} == {"pass"}
    assert (tmp_path / "misuse").read_text() == ""


def test_a_failure_is_told_in_json_and_by_the_exit_code(tmp_path: Path) -> None:
    done = selftest("--cuda", "ctypes", "--json", "--out", str(tmp_path / "log.json"), FAKE_CUDA_FAULTS="launch-fails")
    assert done.returncode == 1
    assert done.stderr == (
        "error: 2 of 15 checks failed on SIMULATED GPU (ctypes, kernel): run devit doctor, and open an issue "
        "with what --json prints\n"
    )
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "log.json").read_text())
    assert found["gpu"]["name"] == "SIMULATED GPU"
    failed = [row for row in found["rows"] if row["verdict"] == "fail"]
    assert [row["check"] for row in failed] == ["kernel", "a new process"]
    assert all("CUDA_ERROR_LAUNCH_FAILED (719)" in row["note"] for row in failed)


def test_a_trap_that_the_driver_hides_fails_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    monkeypatch.setenv("FAKE_CUDA_FAULTS", "trap-ignored")
    row = run._sticky("ctypes", 60)
    assert row.verdict == "fail"
    assert str(row.note).startswith("expected one line and exit code 70, found exit code 1, 1 lines, the last: error: ")


def test_a_driver_that_ends_the_process_does_not_end_the_report() -> None:
    done = selftest("--cuda", "ctypes", FAKE_CUDA_FAULTS="aborts")
    assert done.returncode == 1
    assert "ctypes, kernel: ended by SIGABRT" in done.stdout
    assert "the process ended early" in done.stdout
    assert "ctypes, a kernel traps: expected one line and exit code 70, found SIGABRT" in done.stdout


def test_packages_that_are_not_installed_are_skipped() -> None:
    done = selftest("--cuda", "pycuda", "--json", FAKE_CUDA_WITHOUT="pycuda.driver")
    (row,) = json.loads(done.stdout)["rows"]
    assert (done.returncode, row["verdict"], row["note"]) == (0, "skipped", "not installed")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FAKE_CUDA_FAULTS": "no-device"}, "(100): run on a machine with an NVIDIA GPU"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "(100): CUDA_VISIBLE_DEVICES is '', which may hide the GPU: unset it"),
    ],
)
def test_a_machine_without_a_gpu_is_one_line(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    done = selftest("--out", str(tmp_path / "log.json"), **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cuInit: expected success, found CUDA_ERROR_NO_DEVICE (100): ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "log.json").exists()


def test_a_machine_without_a_driver_is_one_line() -> None:
    """For real, as long as there is none here."""
    try:
        run._gpu("describe", "ctypes", 60)
    except EngineError as err:
        if "is missing" not in str(err):
            pytest.skip(f"there is a driver here: {err}")
    else:
        pytest.skip("there is a GPU here")
    done = selftest(simulated=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: NVIDIA's driver library libcuda.so.1 is missing (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "cure"),
    [(100, "run on a machine with an NVIDIA GPU"), (34, "this libcuda is the toolkit's stub")],
)
def test_a_driver_without_a_gpu_is_one_line(tmp_path: Path, code: int, cure: str) -> None:
    """A library of C, found and called as the real one is; every function of it refuses."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to make a library with")
    functions = [*(PROTOTYPES | KERNEL_PROTOTYPES), "cuGetErrorString"]
    names = "int cuGetErrorName(int code, const char **out) { *out = 0; return 1; }"
    (tmp_path / "cuda.c").write_text("\n".join([names, *(f"int {each}() {{ return {code}; }}" for each in functions)]))
    library = ["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"]
    subprocess.run(library, check=True, capture_output=True, timeout=60)
    done = selftest(simulated=False, LD_LIBRARY_PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    found = f"found an error that this driver does not know ({code}): {cure}"
    assert done.stderr.startswith(f"error: cuInit: expected success, {found}")
    assert done.stderr.count("\n") == 1


def test_a_file_for_the_log_is_refused_without_the_checks() -> None:
    command = [sys.executable, "-c", RUN, "--out", "log.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "give --out with --device" in done.stderr


def test_a_process_that_hangs_is_ended_and_what_it_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first = msgspec.json.encode(Row("ctypes", "opens", "pass", 1.0)).decode()
    half = '{"type":"Row","way":'
    monkeypatch.setattr(run, "_command", lambda *_: ["sh", "-c", f"echo '{first}'; printf '{half}'; exec sleep 600"])
    found = list(run._rows_of("ctypes", 0.5))
    assert [row.check for row in found] == NAMES
    assert (found[0].verdict, found[1].verdict, found[2].verdict) == ("pass", "fail", "skipped")
    assert found[1].note == found[-2].note == "did not end within 0.5 s"
    assert found[-1].verdict == "fail"


def test_a_bug_in_a_check_is_told_by_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_command", lambda *_: [sys.executable, "-c", "raise LookupError('where is it')"])
    found = list(run._rows_of("ctypes", 60))
    assert found[0].note == "exit code 1: LookupError: where is it"
    with pytest.raises(EngineError, match="cannot be asked: exit code 1: LookupError: where is it: run devit doctor"):
        run.run_device_test("ctypes", no_progress)


def test_the_versions_that_a_log_needs_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("SIMULATED GPU", "sm_87", "12.6", 8192, shares_memory=True)
    line = msgspec.json.encode(gpu).decode()
    monkeypatch.setattr(run, "_command", lambda *_: ["echo", line])
    found = run.run_device_test("ctypes", no_progress)
    assert found.gpu == gpu
    assert {"devit", "Python", "Linux"} <= found.versions.keys()
    assert found.created.endswith("+00:00")


def test_the_logs_of_real_gpus_are_logs_of_real_gpus() -> None:
    """And the page beside them says that there is none for as long as there is none."""
    files = sorted(LOGS.glob("*.json"))
    for file in files:
        log = msgspec.json.decode(file.read_bytes(), type=DeviceTest)
        assert "SIMULATED" not in log.gpu.name, file
        assert log.rows, file
    assert ("There is none yet" in (LOGS / "README.md").read_text()) == (not files)
