"""The kernel is PTX that NVIDIA's assemblers accept for every GPU, and the simulated driver is strict about its use."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.engines.fakes import ptx
from tests.engines.fakes.driver import FakeDriver

from devit_engines.cuda.ctypes_driver import PROTOTYPES, CtypesDriver
from devit_engines.cuda.open import open_cuda
from devit_engines.selftest.device.kernel import KERNEL_PROTOTYPES, PTX, DeviceCalls, Kernels, expected

TEXT = PTX.read_text()
ASSEMBLERS = {
    "nvidia-cuda-nvcc-cu11==11.8.*": (53, 62, 72, 75, 80, 86, 87, 90),
    "nvidia-cuda-nvcc-cu12==12.6.*": (53, 62, 72, 75, 80, 86, 87, 89, 90),
    "nvidia-cuda-nvcc==13.0.*": (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121),
}
"""ptxas of JetPack 5's time, of JetPack 6 and of JetPack 7, and GPUs that each knows; the driver holds the same."""


@pytest.mark.nightly(part="installs")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("wheel", ASSEMBLERS)
def test_the_assemblers_of_nvidia_accept_the_kernel(tmp_path: Path, wheel: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target"]
    done = subprocess.run([*pip, str(tmp_path), wheel], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"{wheel} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    (assembler,) = tmp_path.glob("nvidia/**/bin/ptxas")
    assembler.chmod(0o755)
    for target in ASSEMBLERS[wheel]:
        command = [assembler, "-arch", f"sm_{target}", PTX, "-o", tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), target


def test_the_kernel_asks_for_no_more_than_every_supported_driver_has() -> None:
    found = ptx.parse(TEXT)
    assert found.version <= (7, 4), "CUDA 11.4, of JetPack 5"
    assert found.target <= 53
    assert set(found.entries) == {"affine", "fault"}


@pytest.mark.parametrize("count", [1, 127, 128, 129, 4095])
def test_the_kernel_scales_every_byte_and_touches_nothing_else(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    driver = FakeDriver().install(monkeypatch)
    cuda = open_cuda()
    stream, kernels = cuda.create_stream(), Kernels()
    source, target = cuda.allocate(count), cuda.allocate(4 * count + 8)
    values = np.random.default_rng(count).integers(0, 256, count, np.uint8)
    driver.view(source, count)[:] = values.tobytes()
    kernels.affine(source, target + 4, count, stream)
    cuda.synchronize(stream)
    found = np.frombuffer(driver.view(target, 4 * count + 8), np.float32)
    np.testing.assert_array_equal(found[1:-1], expected(values))
    assert found[[0, -1]].tobytes() == b"\xcd" * 8
    driver.check()


def test_the_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver(version=13020).install(monkeypatch)
    open_cuda()
    found = DeviceCalls().describe()
    assert (found.name, found.compute_capability, found.driver_cuda) == ("SIMULATED GPU", "sm_87", "13.2")


# The simulated driver itself


class Raw:
    """The library without our own checks, over a context and a stream."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.cuda = open_cuda()
        self.library = CtypesDriver(PROTOTYPES | KERNEL_PROTOTYPES)
        self.stream = self.cuda.create_stream()
        self._kept: list[object] = []

    def text(self, content: str) -> int:
        self._kept.append(ctypes.create_string_buffer(content.encode()))
        return ctypes.addressof(self._kept[-1])  # type: ignore[arg-type]

    def parameters(self, *values: object) -> int:
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))  # type: ignore[arg-type]
        self._kept += [values, pointers]
        return ctypes.addressof(pointers)

    def function(self, name: str = "affine") -> int:
        _, module = self.library.call("cuModuleLoadData", self.text(TEXT))
        return self.library.call("cuModuleGetFunction", module, self.text(name))[1]

    def launch(self, function: int, parameters: int, *, grid: int = 1, block: int = 32) -> tuple[int, ...]:
        shape = grid, 1, 1, block, 1, 1
        return self.library.call("cuLaunchKernel", function, *shape, 0, self.stream, parameters, 0)


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> Iterator[Raw]:
    found = Raw(FakeDriver().install(monkeypatch))
    yield found
    found.driver.take_misuse()


def affine_of(raw: Raw, source: int, target: int, count: int) -> int:
    kinds = ctypes.c_uint64, ctypes.c_uint64, ctypes.c_float, ctypes.c_float, ctypes.c_uint32
    return raw.parameters(*(kind(value) for kind, value in zip(kinds, (source, target, 1, 0, count), strict=True)))


@pytest.mark.parametrize(("grid", "block"), [(0, 32), (1, 0), (1, 1025), (2**31, 32)])
def test_the_simulation_refuses_sizes_that_no_gpu_has(raw: Raw, grid: int, block: int) -> None:
    assert raw.launch(raw.function("fault"), raw.parameters(), grid=grid, block=block) == (1,)
    assert raw.driver.take_misuse() == [f"a grid ({grid}, 1, 1) of blocks ({block}, 1, 1)"]


def test_the_simulation_refuses_handles_that_are_none(raw: Raw) -> None:
    assert raw.launch(7, raw.parameters()) == (400,)
    assert raw.library.call("cuModuleUnload", 7) == (400,)
    assert raw.library.call("cuModuleGetFunction", 7, raw.text("affine"))[0] == 400
    _, module = raw.library.call("cuModuleLoadData", raw.text(TEXT))
    assert raw.library.call("cuModuleGetFunction", module, raw.text("affine2"))[0] == 500
    assert raw.library.call("cuModuleUnload", module) == (0,)
    assert raw.library.call("cuModuleUnload", module) == (400,)
    assert len(raw.driver.take_misuse()) == 5


def test_the_simulation_refuses_text_that_does_not_end(raw: Raw) -> None:
    """Without its NUL the driver reads what happens to stand behind it."""
    assert raw.library.call("cuModuleLoadData", raw.text(TEXT + "\xff"))[0] == 218
    assert raw.library.call("cuModuleLoadData", raw.text(TEXT.replace("affine(", "affine")))[0] == 218
    assert raw.library.call("cuModuleLoadData", 0)[0] == 1
    assert len(raw.driver.take_misuse()) == 3


def test_the_simulation_refuses_parameters_that_are_missing(raw: Raw) -> None:
    function = raw.function()
    assert raw.launch(function, 0) == (1,)
    some = (ctypes.c_void_p * 5)()
    assert raw.launch(function, ctypes.addressof(some)) == (1,)
    assert raw.driver.take_misuse() == [
        "a launch without parameters of a kernel that has some",
        "a null pointer for the parameter x",
    ]


def test_the_simulation_copies_parameters_when_it_launches(raw: Raw) -> None:
    source, target = raw.cuda.allocate(4), raw.cuda.allocate(16)
    raw.driver.view(source, 4)[:] = bytes([1, 2, 3, 4])
    count = ctypes.c_uint32(4)
    values = ctypes.c_uint64(source), ctypes.c_uint64(target), ctypes.c_float(2), ctypes.c_float(1), count
    assert raw.launch(raw.function(), raw.parameters(*values)) == (0,)
    count.value = 0
    raw.cuda.synchronize(raw.stream)
    assert np.frombuffer(raw.driver.view(target, 16), np.float32).tolist() == [3, 5, 7, 9]


@pytest.mark.parametrize(("more", "where"), [(1, "source"), (1, "target")])
def test_the_simulation_finds_a_kernel_that_leaves_its_memory(raw: Raw, more: int, where: str) -> None:
    source = raw.cuda.allocate(8 if where == "source" else 16)
    target = raw.cuda.allocate(64 if where == "source" else 32)
    assert raw.launch(raw.function(), affine_of(raw, source, target, 8 + more)) == (0,)
    assert raw.library.call("cuStreamSynchronize", raw.stream) == (700,)
    assert len(raw.driver.take_misuse()) == 1


def test_the_simulation_takes_no_memory_of_the_cpu_for_the_gpu_s(raw: Raw) -> None:
    buffer, target = raw.cuda.allocate_host(8), raw.cuda.allocate(32)
    assert raw.launch(raw.function(), affine_of(raw, buffer.array.ctypes.data, target, 8)) == (0,)
    assert raw.library.call("cuStreamSynchronize", raw.stream) == (700,)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("ld.param.f32 %a, [a]", "ld.param.u32 %a, [a]"),
        ("cvt.rn.f32.u32 %in, %value", "cvt.rn.f32.u32 %value, %value"),
        ("shl.b64 %offset, %offset, 2", "shl.b64 %offset, %offset, 0"),
        ("fma.rn.f32", "fma.rz.f32"),
    ],
)
def test_a_kernel_that_is_wrong_does_not_pass_for_a_right_one(
    monkeypatch: pytest.MonkeyPatch, good: str, bad: str
) -> None:
    assert good in TEXT
    entry = ptx.parse(TEXT.replace(good, bad)).entries["affine"]
    memory, values = bytearray(64), {"x": 16, "y": 32, "a": 1.0, "b": 0.0, "count": 4}
    with pytest.raises(ValueError, match=r"."):
        ptx.run(entry, values, 1, 32, lambda address, size: memoryview(memory)[address:][:size])
