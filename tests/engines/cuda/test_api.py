"""CUDA by all three ways in, over a simulated driver that is stricter than a real one.

The driver is SIMULATED: nothing here shows that a Jetson's own behaves so. What is real: ctypes' conversions, against
the prototypes of cuda.h, and in the test marked ``system`` NVIDIA's wheels of cuda-bindings 12.6 to 13.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tests.engines.fakes import driver_bindings
from tests.engines.fakes.driver import CudaFault, FakeDriver
from tests.engines.fakes.driver_library import SYMBOLS

from devit_contract.choices import CudaChoice
from devit_contract.errors import DeviceLostError, EngineError, InputError
from devit_engines.cuda import ctypes_driver as cuda_ctypes
from devit_engines.cuda.api import Cuda, HostBuffer
from devit_engines.cuda.bindings_driver import BindingsDriver
from devit_engines.cuda.ctypes_driver import PROTOTYPES, CtypesDriver
from devit_engines.cuda.open import open_cuda
from devit_engines.selftest.device.kernel import KERNEL_PROTOTYPES

ROOT = Path(__file__).parents[3]
BACK_ENDS = get_args(CudaChoice)[1:]
SIZE = 3072
ALL_PROTOTYPES = PROTOTYPES | KERNEL_PROTOTYPES
KEPT: list[Cuda] = []
ONE_EACH = ("cuda-bindings", "pycuda")
"""What the bindings share is tested with all values by ctypes, and with one value by each other binding."""
LOST = (226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 999)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """An installed driver; at the end nothing may have been wrong."""
    fake = FakeDriver().install(monkeypatch)
    yield fake
    try:
        fake.check()
    finally:
        KEPT.clear()


@pytest.fixture(params=BACK_ENDS)
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cuda(driver: FakeDriver, choice: str) -> Cuda:
    return opened(choice)


def opened(choice: str) -> Cuda:
    """Open CUDA and keep it: a test of a failure does not close it, and pycuda minds being dropped."""
    cuda = open_cuda(choice)
    KEPT.append(cuda)
    return cuda


@dataclass
class Things:
    """What an engine has: a stream, device memory, and host memory for the way in and out."""

    cuda: Cuda
    stream: int
    address: int
    source: HostBuffer
    target: HostBuffer

    @classmethod
    def of(cls, cuda: Cuda, size: int = SIZE) -> Things:
        return cls(cuda, cuda.create_stream(), cuda.allocate(size), cuda.allocate_host(size), cuda.allocate_host(size))

    def round_trip(self) -> None:
        """Queue both copies, and between them work of the GPU that adds one to every byte."""
        size = self.source.array.size
        self.cuda.copy_to_device(self.address, self.source, size, self.stream)
        driver = FakeDriver.current()
        driver.enqueue(self.stream, lambda: add_one(driver.view(self.address, size)))
        self.cuda.copy_to_host(self.target, self.address, size, self.stream)

    def captured(self) -> int:
        self.cuda.begin_capture(self.stream)
        self.round_trip()
        return self.cuda.end_capture(self.stream)

    def give_back(self) -> None:
        self.cuda.free_host(self.target)
        self.cuda.free_host(self.source)
        self.cuda.free(self.address)
        self.cuda.destroy_stream(self.stream)


@pytest.fixture
def things(cuda: Cuda) -> Things:
    return Things.of(cuda)


def add_one(view: memoryview) -> None:
    np.frombuffer(view, np.uint8)[:] += 1


def noise(size: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


# Bytes


@pytest.mark.parametrize(
    ("choice", "size"),
    [("ctypes", size) for size in (1, 511, SIZE, 3 * 224 * 224)] + [(choice, SIZE) for choice in ONE_EACH],
)
def test_bytes_go_to_the_gpu_and_back(cuda: Cuda, size: int) -> None:
    things = Things.of(cuda, size)
    things.source.array[:] = noise(size)
    things.round_trip()
    cuda.synchronize(things.stream)
    np.testing.assert_array_equal(things.target.array, noise(size) + np.uint8(1))


def test_nothing_has_arrived_before_the_stream_is_synchronized(cuda: Cuda, things: Things) -> None:
    things.round_trip()
    assert set(things.target.array) == {0xCD}
    cuda.synchronize(things.stream)
    assert set(things.target.array) == {0xCE}


def test_only_as_many_bytes_as_asked_for_are_copied(cuda: Cuda, things: Things) -> None:
    things.source.array[:] = 1
    cuda.copy_to_device(things.address, things.source, 10, things.stream)
    cuda.copy_to_host(things.target, things.address, 20, things.stream)
    cuda.synchronize(things.stream)
    assert bytes(things.target.array[:30]) == b"\x01" * 10 + b"\xcd" * 20


def test_mapped_memory_is_one_memory_of_cpu_and_gpu(driver: FakeDriver, cuda: Cuda) -> None:
    stream, buffer = cuda.create_stream(), cuda.allocate_host(64, mapped=True)
    assert buffer.device_address is not None
    buffer.array[:] = noise(64)
    driver.enqueue(stream, lambda: add_one(driver.view(buffer.device_address or 0, 64)))
    cuda.synchronize(stream)
    np.testing.assert_array_equal(buffer.array, noise(64) + np.uint8(1))


def test_memory_that_is_not_mapped_has_no_device_address(cuda: Cuda) -> None:
    assert cuda.allocate_host(64).device_address is None


def test_host_memory_that_cannot_be_mapped_is_given_back(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    driver = FakeDriver(can_map=False).install(monkeypatch)
    cuda = opened(choice)
    with pytest.raises(EngineError, match="cuMemHostGetDevicePointer"):
        cuda.allocate_host(64, mapped=True)
    gc.collect()
    assert driver.alive() == []
    driver.check()


# Graphs


def test_a_graph_replays_the_work_with_the_bytes_of_now(driver: FakeDriver, cuda: Cuda, things: Things) -> None:
    graph = things.captured()
    cuda.synchronize(things.stream)
    assert set(things.target.array) == {0xCD}, "captured work must not run"
    for seed in range(3):
        things.source.array[:] = noise(SIZE, seed)
        cuda.launch(graph, things.stream)
        cuda.synchronize(things.stream)
        np.testing.assert_array_equal(things.target.array, noise(SIZE, seed) + np.uint8(1))
    cuda.destroy_graph(graph)
    assert driver.graphs == driver.executables == {}


def test_work_that_cannot_be_captured_leaves_the_stream_as_it_was(
    driver: FakeDriver, cuda: Cuda, things: Things
) -> None:
    driver.refuse_capture = True
    cuda.begin_capture(things.stream)
    with pytest.raises(EngineError, match=r"cuMemcpyHtoDAsync: .*CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED \(900\)"):
        things.round_trip()
    with pytest.raises(EngineError, match=r"cuStreamEndCapture: .*INVALIDATED \(901\).*without a CUDA graph"):
        cuda.end_capture(things.stream)
    things.source.array[:] = 5
    things.round_trip()
    cuda.synchronize(things.stream)
    assert set(things.target.array) == {6}
    assert driver.graphs == {}


def test_a_graph_that_cannot_be_instantiated_is_freed(driver: FakeDriver, cuda: Cuda, things: Things) -> None:
    driver.fail("cuGraphInstantiateWithFlags", 2)
    with pytest.raises(EngineError, match=r"cuGraphInstantiateWithFlags.*OUT_OF_MEMORY"):
        things.captured()
    assert driver.graphs == {}
    cuda.synchronize(things.stream)


@pytest.mark.parametrize(
    ("forbidden", "noted"),
    [
        (lambda things: things.cuda.allocate(8), "cuMemAlloc while capturing"),
        (lambda things: things.cuda.allocate_host(8), "cuMemHostAlloc while capturing"),
        (lambda things: things.cuda.free(things.address), "cuMemFree while capturing"),
        (lambda things: things.cuda.synchronize(things.stream), "a stream synchronized while capturing"),
        (lambda things: things.cuda.begin_capture(things.stream), "capture of a stream that is capturing"),
    ],
)
def test_what_cannot_be_captured_is_refused(
    driver: FakeDriver, choice: str, forbidden: Callable[[Things], object], noted: str
) -> None:
    if choice == "pycuda" and "Free" in noted:
        pytest.skip("pycuda tells failures to free on stderr only")
    things = Things.of(opened(choice))
    things.cuda.begin_capture(things.stream)
    with pytest.raises(EngineError):
        forbidden(things)
    assert driver.take_misuse() == [noted]
    with suppress(EngineError):
        things.cuda.destroy_graph(things.cuda.end_capture(things.stream))
    things.round_trip()
    things.cuda.synchronize(things.stream)
    assert set(things.target.array) == {0xCE}
    things.give_back()
    things.cuda.close()


# Order of the end


def test_a_close_in_order_leaves_nothing(driver: FakeDriver, cuda: Cuda, things: Things) -> None:
    graph = things.captured()
    cuda.launch(graph, things.stream)
    cuda.synchronize(things.stream)
    cuda.destroy_graph(graph)
    things.give_back()
    cuda.close()
    cuda.close()
    assert (driver.alive(), driver.stack(), driver.holders) == ([], [], 0)


def test_what_is_not_given_back_is_noted(driver: FakeDriver, cuda: Cuda, things: Things) -> None:
    cuda.close()
    (noted,) = driver.take_misuse()
    assert noted.startswith("the primary context ends with 3072 bytes of device memory, 3072 bytes of host memory")
    del things


@pytest.mark.parametrize(
    ("choice", "order"),
    [("pycuda", order) for order in itertools.permutations(range(3))]
    + [("ctypes", (1, 0, 2)), ("cuda-bindings", (1, 0, 2))],
)
def test_engines_of_one_thread_may_be_closed_in_any_order(
    driver: FakeDriver, choice: str, order: tuple[int, ...]
) -> None:
    """A new engine is loaded and checked before the old one is closed; pycuda alone keeps a stack."""
    engines = [Things.of(opened(choice)) for _ in range(3)]
    for index in order:
        engines[index].give_back()
        engines[index].cuda.close()
        engines[index].cuda.close()
        for other in order[order.index(index) + 1 :]:
            engines[other].round_trip()
            engines[other].cuda.synchronize(engines[other].stream)
    assert (driver.alive(), driver.stack(), driver.holders) == ([], [], 0)


def test_a_context_that_tensorrt_still_holds_stays_current(driver: FakeDriver, cuda: Cuda) -> None:
    driver.call("cuDevicePrimaryCtxRetain", 0)
    before = driver.stack().copy()
    cuda.close()
    assert driver.stack() == before
    assert driver.holders == 1


def test_a_closed_cuda_says_so(cuda: Cuda) -> None:
    cuda.close()
    with pytest.raises(EngineError, match="CUDA is closed"):
        cuda.create_stream()


def test_pycuda_keeps_nothing_on_its_stack_between_calls(driver: FakeDriver) -> None:
    """It aborts the process at the end if something is there."""
    things = Things.of(opened("pycuda"))
    with pytest.raises(EngineError):
        things.cuda.allocate(1 << 60)
    assert len(driver.stack()) == 1, "CUDA's own stack holds the context once"
    assert importlib.import_module("pycuda.driver").Context.get_current() is None
    things.give_back()
    things.cuda.close()


def test_a_context_that_pycuda_itself_would_end_is_noted(driver: FakeDriver) -> None:
    """Its destructor takes a primary context for one of its own."""
    open_cuda("pycuda")
    gc.collect()
    assert driver.take_misuse() == ["a primary context of pycuda dropped without detach()"]


# Failures


FUNCTIONS: dict[str, Callable[[Things], object]] = {
    "cuMemAlloc": lambda things: things.cuda.allocate(8),
    "cuMemFree": lambda things: things.cuda.free(things.address),
    "cuMemHostAlloc": lambda things: things.cuda.allocate_host(8),
    "cuMemHostGetDevicePointer": lambda things: things.cuda.allocate_host(8, mapped=True),
    "cuMemFreeHost": lambda things: things.cuda.free_host(things.source),
    "cuStreamCreate": lambda things: things.cuda.create_stream(),
    "cuStreamDestroy": lambda things: things.cuda.destroy_stream(things.stream),
    "cuMemcpyHtoDAsync": lambda things: things.round_trip(),
    "cuMemcpyDtoHAsync": lambda things: things.round_trip(),
    "cuStreamSynchronize": lambda things: things.cuda.synchronize(things.stream),
    "cuStreamBeginCapture": lambda things: things.captured(),
    "cuStreamEndCapture": lambda things: things.captured(),
    "cuGraphInstantiateWithFlags": lambda things: things.captured(),
    "cuGraphDestroy": lambda things: things.captured(),
    "cuGraphLaunch": lambda things: things.cuda.launch(things.captured(), things.stream),
    "cuGraphExecDestroy": lambda things: things.cuda.destroy_graph(things.captured()),
    "cuDevicePrimaryCtxRelease": lambda things: things.cuda.close(),
}
SILENT_IN_PYCUDA = {"cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuDevicePrimaryCtxRelease"}
LOUD = [
    (choice, function)
    for choice in BACK_ENDS
    for function in FUNCTIONS
    if not (choice == "pycuda" and function in SILENT_IN_PYCUDA)
]


@pytest.mark.parametrize(("choice", "function"), LOUD)
def test_an_error_names_call_code_and_name(driver: FakeDriver, choice: str, function: str) -> None:
    things = Things.of(opened(choice))
    driver.fail(function, 101)
    with pytest.raises(EngineError) as caught:
        FUNCTIONS[function](things)
    assert str(caught.value).startswith(f"{function}: expected success, found CUDA_ERROR_INVALID_DEVICE (101): ")
    assert not isinstance(caught.value, DeviceLostError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"])
def test_a_failed_opening_holds_no_context(driver: FakeDriver, choice: str, function: str) -> None:
    driver.fail(function, 100)
    with pytest.raises(EngineError, match=rf"{function}: .*NO_DEVICE \(100\): run on a machine"):
        open_cuda(choice)
    gc.collect()
    assert (driver.holders, driver.stack()) == (0, [])


@pytest.mark.parametrize(
    ("choice", "function"),
    [("ctypes", function) for function in ("cuInit", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent")]
    + [(choice, "cuDevicePrimaryCtxRetain") for choice in ONE_EACH],
)
def test_a_gpu_that_is_lost_when_it_is_opened_is_lost(driver: FakeDriver, choice: str, function: str) -> None:
    driver.fail(function, 999)
    with pytest.raises(DeviceLostError, match=rf"{function}: .*\(999\)"):
        open_cuda(choice)


def test_a_gpu_that_is_not_there_is_named(driver: FakeDriver, choice: str) -> None:
    with pytest.raises(EngineError, match="choose a device that is there"):
        open_cuda(choice, device=3)


def test_memory_that_ran_out_is_no_lost_gpu(cuda: Cuda) -> None:
    with pytest.raises(EngineError, match=r"cuMemAlloc: .*OUT_OF_MEMORY \(2\): stop other programs"):
        cuda.allocate(1 << 40)
    assert cuda.allocate(8)


@pytest.mark.parametrize(
    ("choice", "code"), [("ctypes", code) for code in LOST] + [(choice, 719) for choice in ONE_EACH]
)
def test_a_lost_context_is_lost_for_every_call_after(driver: FakeDriver, cuda: Cuda, things: Things, code: int) -> None:
    """As cuda.h has it: only a new process helps. No call may reach the driver any more, and none hides the reason."""
    driver.fail("cuStreamSynchronize", code)
    with pytest.raises(DeviceLostError, match=rf"cuStreamSynchronize: .*\({code}\).* start it again"):
        cuda.synchronize(things.stream)
    calls = driver.calls.total()
    for call in (things.give_back, things.round_trip, cuda.create_stream, cuda.close):
        with pytest.raises(DeviceLostError, match="cuStreamSynchronize"):
            call()
    assert driver.calls.total() == calls
    del things, cuda
    KEPT.clear()
    gc.collect()
    assert driver.calls.total() == calls, "pycuda frees what it holds, which ends the process when the context is lost"


@pytest.mark.parametrize(
    ("choice", "code"),
    [("ctypes", code) for code in (2, 201, 400, 709, 901)] + [(choice, 201) for choice in ONE_EACH],
)
def test_any_other_error_can_be_outlived(driver: FakeDriver, cuda: Cuda, things: Things, code: int) -> None:
    driver.fail("cuStreamSynchronize", code)
    with pytest.raises(EngineError) as caught:
        cuda.synchronize(things.stream)
    assert not isinstance(caught.value, DeviceLostError)
    cuda.synchronize(things.stream)


def test_work_that_faults_loses_the_context_when_it_is_waited_for(
    driver: FakeDriver, cuda: Cuda, things: Things
) -> None:
    driver.enqueue(things.stream, lambda: add_one(driver.view(things.address, SIZE + 1)))
    with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
        cuda.synchronize(things.stream)
    assert driver.take_misuse() == ["3073 bytes at offset 0 of 3072 bytes of device memory"]


@pytest.mark.parametrize("code", [35, 36])
def test_a_package_newer_than_the_driver_says_what_to_install(driver: FakeDriver, code: int) -> None:
    driver.fail("cuInit", code)
    with pytest.raises(EngineError, match=rf"\({code}\): .*pip install 'cuda-python==12\.6\.\*'"):
        open_cuda("cuda-bindings")


# One thread


def test_another_thread_is_refused_and_both_are_named(driver: FakeDriver, cuda: Cuda, things: Things) -> None:
    caught: list[EngineError] = []

    def use() -> None:
        for call in FUNCTIONS.values():
            try:
                call(things)
            except EngineError as err:
                caught.append(err)

    calls = driver.calls.total()
    thread = threading.Thread(target=use, name="the camera")
    thread.start()
    thread.join(10)
    assert len(caught) == len(FUNCTIONS)
    assert driver.calls.total() == calls
    for err in caught:
        assert re.search(r"expected thread MainThread \(\d+\), .* found thread the camera \(\d+\)", str(err))


def test_every_thread_may_open_its_own(driver: FakeDriver, choice: str) -> None:
    failures: list[BaseException] = []

    def use() -> None:
        try:
            things = Things.of(opened(choice))
            things.round_trip()
            things.cuda.synchronize(things.stream)
            things.give_back()
            things.cuda.close()
            assert driver.stack() == []
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join(10)
    assert failures == []
    assert driver.holders == 0


# Host memory


def test_memory_that_is_not_pinned_here_is_refused(cuda: Cuda, things: Things) -> None:
    """A copy of pageable memory waits, and cannot be captured."""
    foreign = HostBuffer(np.zeros(SIZE, np.uint8), None)
    with pytest.raises(EngineError, match="expected a buffer of allocate_host"):
        cuda.copy_to_device(things.address, foreign, SIZE, things.stream)
    with pytest.raises(EngineError, match="expected a buffer of allocate_host"):
        cuda.copy_to_host(foreign, things.address, SIZE, things.stream)
    with pytest.raises(EngineError, match="expected a buffer of allocate_host"):
        cuda.free_host(foreign)


def test_host_memory_is_freed_once_and_not_used_afterwards(cuda: Cuda, things: Things) -> None:
    cuda.free_host(things.source)
    with pytest.raises(EngineError, match="one that was freed"):
        cuda.free_host(things.source)
    with pytest.raises(EngineError, match="one that was freed"):
        things.round_trip()


def test_a_copy_ends_with_the_buffer(cuda: Cuda, things: Things) -> None:
    with pytest.raises(EngineError, match="at most the buffer's 3072 bytes, found 3073"):
        cuda.copy_to_device(things.address, things.source, SIZE + 1, things.stream)


# The choice


def test_auto_needs_no_package(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.bindings.driver", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    assert open_cuda().name == "ctypes"


def test_every_choice_tells_its_name(driver: FakeDriver, choice: str) -> None:
    assert opened(choice).name == choice


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(InputError, match="torch: choose one of auto, pycuda, cuda-bindings, ctypes"):
        open_cuda("torch")


@pytest.mark.parametrize(
    ("choice", "module", "cure"),
    [
        ("cuda-bindings", "cuda.bindings.driver", r"pip install 'cuda-python==12\.6\.\*' on JetPack 6"),
        ("pycuda", "pycuda.driver", "PATH=/usr/local/cuda/bin:.* pip install pycuda, or choose ctypes"),
    ],
)
def test_a_missing_package_says_how_to_install_it(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, choice: str, module: str, cure: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=f"the package {choice} is not installed .*{cure}"):
        open_cuda(choice)


def test_a_machine_without_a_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, as long as no library has this name."""
    monkeypatch.setattr(cuda_ctypes, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(EngineError, match=r"libcuda-of-nobody\.so\.1 is missing .*: run on a machine") as caught:
        open_cuda()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("choice", ["ctypes", "pycuda"])
def test_a_driver_that_is_too_old_is_refused_when_it_is_opened(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    FakeDriver(version=11030).install(monkeypatch)
    with pytest.raises(EngineError, match="has no function cuGraphInstantiateWithFlags"):
        open_cuda(choice)


@pytest.mark.parametrize(
    ("choice", "version"),
    [("cuda-bindings", version) for version in (12020, 12060, 12090, 13000, 13020)]
    + [(choice, version) for choice in ("ctypes", "pycuda") for version in (12020, 13020)],
)
def test_all_supported_versions_work_alike(monkeypatch: pytest.MonkeyPatch, choice: str, version: int) -> None:
    driver = FakeDriver(version=version).install(monkeypatch)
    things = Things.of(opened(choice))
    things.cuda.launch(things.captured(), things.stream)
    things.cuda.synchronize(things.stream)
    assert set(things.target.array) == {0xCE}
    driver.fail("cuStreamCreate", 2)
    with pytest.raises(EngineError, match=r"OUT_OF_MEMORY \(2\)"):
        things.cuda.create_stream()
    driver.check()


# The prototypes


def sizes(parameters: tuple[type, ...]) -> list[tuple[bool, int]]:
    """Whether each parameter is a pointer to a result, and the size of what it is or points to."""
    return [
        (hasattr(kind, "contents"), ctypes.sizeof(kind._type_ if hasattr(kind, "contents") else kind))  # type: ignore[attr-defined]
        for kind in parameters
    ]


def test_the_prototypes_are_those_of_the_simulated_library() -> None:
    for symbol, ours in ALL_PROTOTYPES.items():
        name, parameters, _ = SYMBOLS[symbol]
        assert name == symbol.removesuffix("_v2")
        assert sizes(ours) == sizes(parameters), symbol


C_SIZES = {"int": 4, "unsigned int": 4, "size_t": 8, "unsigned long long": 8, "CUdevice": 4, "CUdeviceptr": 8}
C_SIZES |= dict.fromkeys(("CUcontext", "CUstream", "CUgraph", "CUgraphExec", "CUmodule", "CUfunction"), 8)
C_SIZES |= {"CUstreamCaptureMode": 4, "CUdevice_attribute": 4}


def test_the_prototypes_are_those_of_cuda_h() -> None:
    headers = sorted(Path("/usr/local").glob("cuda*/include/cuda.h"))
    if not headers:
        pytest.skip("no CUDA toolkit on this machine, so no cuda.h")
    header = headers[-1].read_text()
    # The short name may stand for a versioned one, and the versioned one be declared under the short one alone.
    names = dict(re.findall(r"#define +(cu\w+) +(?:__CUDA_API_\w+\()?(cu\w+)", header))
    declared = {symbol: symbol for symbol in ALL_PROTOTYPES} | {symbol: name for name, symbol in names.items()}
    for symbol, ours in ALL_PROTOTYPES.items():
        found = re.search(rf"^CUresult CUDAAPI {declared[symbol]}\(([^)]*)\);", header, re.MULTILINE)
        assert found is not None, symbol
        expected = []
        for text in filter(None, found[1].split(",")):
            kind = text.replace("const ", "").strip().rpartition(" ")
            stars = kind[2].count("*")
            is_data = kind[0] in ("void", "char") and symbol in KERNEL_PROTOTYPES  # an array of the caller's
            stars = 0 if is_data else stars
            expected.append((stars == 2, 8) if kind[0] in ("void", "char") else (stars == 1, C_SIZES[kind[0]]))
        assert sizes(ours) == expected, symbol


# The simulated driver itself: what is wrong is found, also where a real one would say nothing


@pytest.fixture
def raw(driver: FakeDriver) -> Iterator[CtypesDriver]:
    """The library without our own checks; a context is current."""
    library = CtypesDriver()
    for call in (("cuInit", 0), ("cuDevicePrimaryCtxRetain", 0), ("cuCtxSetCurrent",)):
        library.call(*call, *((driver._context,) if len(call) == 1 else ()))
    yield library
    driver.take_misuse()


def test_the_simulation_finds_a_double_free(driver: FakeDriver, raw: CtypesDriver) -> None:
    for allocate, free in (("cuMemAlloc", "cuMemFree"), ("cuMemHostAlloc", "cuMemFreeHost")):
        _, address = raw.call(allocate, 64, *(() if allocate == "cuMemAlloc" else (0,)))
        assert raw.call(free, address) == (0,)
        assert raw.call(free, address) == (1,)
        assert "after it was freed" in driver.take_misuse()[0]


def test_the_simulation_finds_a_copy_past_the_end(driver: FakeDriver, raw: CtypesDriver) -> None:
    _, device = raw.call("cuMemAlloc", 64)
    _, host = raw.call("cuMemHostAlloc", 64, 0)
    _, stream = raw.call("cuStreamCreate", 1)
    assert raw.call("cuMemcpyHtoDAsync", device + 1, host, 64, stream)[0] == 1
    assert raw.call("cuMemcpyHtoDAsync", device, host + 1, 64, stream)[0] == 1
    assert raw.call("cuMemcpyDtoHAsync", host, device - 1, 8, stream)[0] == 1
    assert len(driver.take_misuse()) == 3
    with pytest.raises(CudaFault, match="700"):
        driver.view(device, 65)


def test_the_simulation_finds_a_use_after_free(driver: FakeDriver, raw: CtypesDriver) -> None:
    _, device = raw.call("cuMemAlloc", 64)
    raw.call("cuMemFree", device)
    with pytest.raises(CudaFault):
        driver.view(device, 1)
    assert driver.take_misuse() == ["device memory used by the GPU after it was freed"]


def test_the_simulation_finds_a_graph_that_outlives_its_memory(driver: FakeDriver, raw: CtypesDriver) -> None:
    _, device = raw.call("cuMemAlloc", 64)
    _, host = raw.call("cuMemHostAlloc", 64, 0)
    _, stream = raw.call("cuStreamCreate", 1)
    raw.call("cuStreamBeginCapture", stream, 1)
    raw.call("cuMemcpyHtoDAsync", device, host, 64, stream)
    _, graph = raw.call("cuStreamEndCapture", stream)
    _, executable = raw.call("cuGraphInstantiateWithFlags", graph, 0)
    raw.call("cuMemFree", device)
    raw.call("cuGraphLaunch", executable, stream)
    assert raw.call("cuStreamSynchronize", stream) == (700,)
    assert driver.take_misuse() == ["device memory used by the GPU after it was freed"]


@pytest.mark.parametrize("freed", ["cuMemFree", "cuMemFreeHost", "cuStreamDestroy"])
def test_the_simulation_finds_what_is_freed_with_work_in_flight(
    driver: FakeDriver, raw: CtypesDriver, freed: str
) -> None:
    _, device = raw.call("cuMemAlloc", 64)
    _, host = raw.call("cuMemHostAlloc", 64, 0)
    _, stream = raw.call("cuStreamCreate", 1)
    raw.call("cuMemcpyHtoDAsync", device, host, 64, stream)
    assert raw.call(freed, {"cuMemFree": device, "cuMemFreeHost": host, "cuStreamDestroy": stream}[freed])[0] == 1
    assert "with work in flight" in driver.take_misuse()[0]


def test_the_simulation_captures_no_memory_that_is_not_pinned(driver: FakeDriver, raw: CtypesDriver) -> None:
    _, device = raw.call("cuMemAlloc", 64)
    _, stream = raw.call("cuStreamCreate", 1)
    pageable = ctypes.create_string_buffer(64)
    assert raw.call("cuMemcpyHtoDAsync", device, ctypes.addressof(pageable), 64, stream) == (0,)
    raw.call("cuStreamSynchronize", stream)
    raw.call("cuStreamBeginCapture", stream, 1)
    assert raw.call("cuMemcpyHtoDAsync", device, ctypes.addressof(pageable), 64, stream) == (900,)
    assert raw.call("cuStreamEndCapture", stream)[0] == 901
    assert driver.take_misuse() == ["a copy of memory that is not pinned while capturing"]


def test_the_simulation_finds_the_default_stream_beside_a_capture(driver: FakeDriver, raw: CtypesDriver) -> None:
    _, stream = raw.call("cuStreamCreate", 1)
    raw.call("cuStreamBeginCapture", stream, 1)
    with pytest.raises(CudaFault, match="906"):
        driver.enqueue(0, lambda: None)
    assert raw.call("cuStreamEndCapture", stream)[0] == 901
    assert driver.take_misuse() == ["work on the default stream while another one is capturing"]


def test_the_simulation_finds_a_thread_without_context(driver: FakeDriver, raw: CtypesDriver) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(raw.call("cuMemAlloc", 64)[0]))
    thread.start()
    thread.join(10)
    assert codes == [201]
    assert driver.take_misuse() == ["cuMemAlloc in a thread without a current context"]


def test_the_simulation_finds_a_use_of_the_released_context(driver: FakeDriver, raw: CtypesDriver) -> None:
    raw.call("cuDevicePrimaryCtxRelease", 0)
    assert raw.call("cuMemAlloc", 64)[0] == 709
    assert raw.call("cuDevicePrimaryCtxRelease", 0)[0] == 201
    assert len(driver.take_misuse()) == 2


def test_the_simulation_finds_host_memory_used_by_the_gpu_that_is_not_mapped(
    driver: FakeDriver, raw: CtypesDriver
) -> None:
    _, host = raw.call("cuMemHostAlloc", 64, 0)
    with pytest.raises(CudaFault):
        driver.view(host, 64)
    assert raw.call("cuMemHostGetDevicePointer", host, 0)[0] == 1
    assert len(driver.take_misuse()) == 2


def test_the_simulation_fails_the_nth_call_alone_unless_the_code_is_sticky(
    driver: FakeDriver, raw: CtypesDriver
) -> None:
    driver.fail("cuMemAlloc", 2, nth=2)
    assert [raw.call("cuMemAlloc", 64)[0] for _ in range(3)] == [0, 2, 0]
    driver.fail("cuMemAlloc", 719)
    assert [raw.call("cuMemAlloc", 64)[0], raw.call("cuStreamCreate", 1)[0]] == [719, 719]


def test_the_simulation_does_not_lose_a_bug_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver().install(monkeypatch)
    things = Things.of(open_cuda())
    driver.enqueue(things.stream, lambda: [][1])
    with pytest.raises(DeviceLostError):
        things.cuda.synchronize(things.stream)
    with pytest.raises(IndexError):
        driver.check()


def test_the_simulation_has_no_other_names_than_the_real_things(driver: FakeDriver) -> None:
    if "DEVIT_REAL_CUDA_BINDINGS" in os.environ:
        pytest.skip("the real package is in use")
    with pytest.raises(AttributeError):
        CtypesDriver()._functions["cuMemAlloc"] = cuda_ctypes.load_library().cuMemAlloc  # the 32-bit form
    module = importlib.import_module("cuda.bindings.driver")
    assert not hasattr(module, "cuGraphInstantiateWithFlags")
    with pytest.raises(TypeError, match="CUstreamCaptureMode"):
        module.cuStreamBeginCapture(1, 1)
    with pytest.raises(ValueError, match="35 is not a valid CUresult"):
        module.CUresult(35)


# NVIDIA's real package

WHEELS = ("cuda-python==12.6.*", "cuda-bindings==12.8.*", "cuda-bindings==12.9.*", "cuda-bindings==13.*")
COMPARE = """
import inspect
from cuda.bindings import driver
from tests.engines.fakes.driver_bindings import FUNCTIONS, HANDLES, enumerations

for name, (parameters, _) in FUNCTIONS.items():
    assert len(inspect.signature(getattr(driver, name)).parameters) == len(parameters), name
for name in HANDLES:
    assert int(getattr(driver, name)(7)) == 7, name
for name, members in enumerations(driver.CUDA_VERSION).items():
    for member, value in members.items():
        assert int(getattr(getattr(driver, name), member)) == value, member
        assert getattr(driver, name)(value).name == member
for name in set(enumerations(99999)["CUresult"]) - set(enumerations(driver.CUDA_VERSION)["CUresult"]):
    assert not hasattr(driver.CUresult, name), name
assert not hasattr(driver, "cuGraphInstantiateWithFlags")
assert driver.CU_MEMHOSTALLOC_DEVICEMAP == 2 and int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING) == 1
print("CUDA", driver.CUDA_VERSION)
"""


@pytest.mark.nightly(part="installs")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("wheel", WHEELS)
def test_the_real_package_has_these_names_and_passes_these_tests(tmp_path: Path, wheel: str) -> None:
    """NVIDIA's compiled package, over a ``libcuda.so.1`` whose functions are the simulated driver's."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(tmp_path / "p")]
    done = subprocess.run([*pip, wheel], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"{wheel} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    (tmp_path / "stub.c").write_text(driver_bindings.REAL_LIBRARY)
    library = tmp_path / "libcuda.so.1"
    compiler = subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "stub.c"], capture_output=True, text=True, timeout=60
    )
    assert compiler.returncode == 0, compiler.stderr
    environment = os.environ | {
        "DEVIT_REAL_CUDA_BINDINGS": "1",
        "LD_LIBRARY_PATH": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "p"), str(ROOT)]),
    }
    for command in (
        ["-c", COMPARE],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not nightly", "-k", "bindings", __file__],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        print(wheel, done.stdout.strip().splitlines()[-1])


def test_the_bindings_version_is_read_off_the_package(driver: FakeDriver) -> None:
    module = importlib.import_module("cuda.bindings.driver")
    assert hasattr(module, "__file__") == ("DEVIT_REAL_CUDA_BINDINGS" in os.environ)
    version = int(module.CUDA_VERSION)
    assert BindingsDriver()._version() == f"{version // 1000}.{version % 1000 // 10}"
