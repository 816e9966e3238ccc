"""What the simulated driver answers, a real one answers too: the same tests over both, where there is a GPU.

``make test-gpu`` runs them over the real one, each in this very process. Only what cuda.h defines is asked, never a
pointer or handle that is none: a real driver may end the process over that.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.engines.fakes.driver import FakeDriver

from devit_contract.choices import CudaChoice
from devit_contract.errors import EngineError
from devit_engines.cuda.ctypes_driver import PROTOTYPES, CtypesDriver
from devit_engines.cuda.open import open_cuda
from devit_engines.selftest.device import checks
from devit_engines.selftest.device.checks import CHECKS, Skipped
from devit_engines.selftest.device.kernel import KERNEL_PROTOTYPES, PTX

ROOT = Path(__file__).parents[3]
Library = CtypesDriver


@pytest.fixture(params=["SIMULATED", pytest.param("real", marks=pytest.mark.gpu)])
def simulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver | None]:
    """The simulated driver, or None where the real one is asked."""
    if request.param == "SIMULATED":
        monkeypatch.setattr(checks, "REPLAYS", 20)
        monkeypatch.setattr(checks, "_PLAIN_RUNS", 5)
        yield FakeDriver().install(monkeypatch)
        return
    try:
        open_cuda().close()
    except EngineError as err:
        pytest.skip(str(err))
    yield None


@pytest.mark.parametrize("way", ["ctypes", "cuda-bindings", "pycuda"])
@pytest.mark.parametrize("check", CHECKS)
def test_every_check_passes(simulated: FakeDriver | None, check: str, way: CudaChoice) -> None:
    try:
        CHECKS[check](way)
    except Skipped as reason:
        pytest.skip(str(reason))
    except EngineError as err:
        if not isinstance(err.__cause__, ModuleNotFoundError):
            raise
        pytest.skip(f"{way} is not installed")
    if simulated is not None:
        simulated.check()


@pytest.fixture
def library(simulated: FakeDriver | None) -> Iterator[Library]:
    """The library without our own checks; a context is current."""
    cuda = open_cuda()
    yield CtypesDriver(PROTOTYPES | KERNEL_PROTOTYPES)
    if simulated is None:
        cuda.close()


def loaded(library: Library, text: bytes) -> tuple[int, ...]:
    content = ctypes.create_string_buffer(text)
    return library.call("cuModuleLoadData", ctypes.addressof(content))


def named(library: Library, module: int, name: bytes) -> tuple[int, ...]:
    content = ctypes.create_string_buffer(name)
    return library.call("cuModuleGetFunction", module, ctypes.addressof(content))


def launched(library: Library, *, blocks: int = 1, threads: int = 1) -> int:
    """Launch the kernel over no bytes at all, so that it does nothing."""
    values = ctypes.c_uint64(0), ctypes.c_uint64(0), ctypes.c_float(1), ctypes.c_float(0), ctypes.c_uint32(0)
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    _, module = loaded(library, PTX.read_bytes())
    _, function = named(library, module, b"affine")
    _, stream = library.call("cuStreamCreate", 1)
    shape = blocks, 1, 1, threads, 1, 1
    (code,) = library.call("cuLaunchKernel", function, *shape, 0, stream, ctypes.addressof(pointers), 0)
    library.call("cuStreamSynchronize", stream)
    library.call("cuStreamDestroy", stream)
    library.call("cuModuleUnload", module)
    return code


def capturing(library: Library, work: Callable[[int], object]) -> list[int]:
    """What a stream answers to the end of a capture in which something was done."""
    _, stream = library.call("cuStreamCreate", 1)
    assert library.call("cuStreamBeginCapture", stream, 1) == (0,)
    codes = [int(work(stream))]  # type: ignore[call-overload]
    code, *graph = library.call("cuStreamEndCapture", stream)
    if code == 0:
        library.call("cuGraphDestroy", *graph)
    library.call("cuStreamDestroy", stream)
    return [*codes, code]


def freed_twice(library: Library) -> list[int]:
    _, address = library.call("cuMemAlloc", 64)
    return [library.call("cuMemFree", address)[0] for _ in range(2)]


def end_without_capture(library: Library) -> int:
    _, stream = library.call("cuStreamCreate", 1)
    code = library.call("cuStreamEndCapture", stream)[0]
    library.call("cuStreamDestroy", stream)
    return code


def of_another_thread(library: Library) -> int:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(library.call("cuMemAlloc", 64)[0]))
    thread.start()
    thread.join(10)
    return codes[0]


def missing_function(library: Library) -> int:
    _, module = loaded(library, PTX.read_bytes())
    code = named(library, module, b"nobody")[0]
    library.call("cuModuleUnload", module)
    return code


NEWER = PTX.read_bytes().replace(b".version 5.0", b".version 99.0")
ANSWERS: dict[str, tuple[Callable[[Library], object], object]] = {
    "no bytes": (lambda it: it.call("cuMemAlloc", 0)[0], 1),
    "more than there is": (lambda it: it.call("cuMemAlloc", 1 << 48)[0], 2),
    "a GPU that is not there": (lambda it: it.call("cuDeviceGet", 99)[0], 101),
    "memory freed twice": (freed_twice, [0, 1]),
    "a thread without a context": (of_another_thread, 201),
    "text that is no PTX": (lambda it: loaded(it, b"this is no PTX")[0], 218),
    "PTX of a later driver": (lambda it: loaded(it, NEWER)[0], 222),
    "a function that is not there": (missing_function, 500),
    "a launch": (lambda it: launched(it), 0),
    "no blocks": (lambda it: launched(it, blocks=0), 1),
    "too many threads": (lambda it: launched(it, threads=2048), 1),
    "a capture of nothing": (lambda it: capturing(it, lambda _: 0), [0, 0]),
    "a wait while capturing": (
        lambda it: capturing(it, lambda stream: it.call("cuStreamSynchronize", stream)[0]),
        [900, 901],
    ),
    "memory while capturing": (lambda it: capturing(it, lambda _: it.call("cuMemAlloc", 64)[0]), [900, 901]),
    "a second capture": (
        lambda it: capturing(it, lambda stream: it.call("cuStreamBeginCapture", stream, 1)[0]),
        [401, 0],
    ),
    "an end without a capture": (end_without_capture, 401),
}


@pytest.mark.parametrize("question", ANSWERS)
def test_the_driver_answers_with_this_code(library: Library, question: str) -> None:
    ask, answer = ANSWERS[question]
    assert ask(library) == answer


def test_without_a_gpu_the_real_half_is_skipped_with_its_reason() -> None:
    with suppress(EngineError):
        open_cuda().close()
        pytest.skip("there is a GPU here")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", "gpu", __file__]
    wide = os.environ | {"COLUMNS": "300"}
    done = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]
    assert "libcuda.so.1 is missing" in done.stdout
