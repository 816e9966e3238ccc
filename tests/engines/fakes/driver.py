"""A simulated CUDA driver in Python, stricter than a real one, behind all three ways of calling it.

``FakeDriver.install(monkeypatch)`` puts it where ``ctypes_driver``, ``bindings_driver`` and ``pycuda_driver`` of
:mod:`devit_engines.cuda` look for the real thing. A fake TensorRT takes it from ``FakeDriver.current()``,
queues work with ``enqueue`` and reaches memory through ``view``.

Work on a stream waits until somebody synchronizes it, so what was forgotten shows as stale bytes; fresh memory holds
0xCD, freed memory 0xDD. What a real driver answers with an error is answered with that error; what it would leave to
chance is refused too. Both are noted in ``misuse``, and ``check()`` raises if a test left anything there. Failures that
a test asked for, by ``fail``, ``refuse_capture`` or ``faults``, are not misuse.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from tests.engines.fakes.driver_kernels import KernelCalls

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 1, 2, 3
NO_DEVICE, INVALID_DEVICE, INVALID_CONTEXT = 100, 101, 201
INVALID_HANDLE, ILLEGAL_STATE, ILLEGAL_ADDRESS, CONTEXT_IS_DESTROYED, LAUNCH_FAILED = 400, 401, 700, 709, 719
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_IMPLICIT, CAPTURE_WRONG_THREAD = 900, 901, 906, 908

ERRORS = {
    0: ("CUDA_SUCCESS", "no error"),
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    3: ("CUDA_ERROR_NOT_INITIALIZED", "initialization error"),
    34: ("CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"),
    36: ("CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "API call is not supported in the installed CUDA driver"),
    218: ("CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"),
    221: ("CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX JIT compiler library not found"),
    222: ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."),
    500: ("CUDA_ERROR_NOT_FOUND", "named symbol not found"),
    100: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    101: ("CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    226: ("CUDA_ERROR_CONTAINED", "Invalid access of peer GPU memory over nvlink or a hardware error"),
    400: ("CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"),
    401: ("CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"),
    700: ("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    702: ("CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"),
    709: ("CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"),
    710: ("CUDA_ERROR_ASSERT", "device-side assert triggered"),
    714: ("CUDA_ERROR_HARDWARE_STACK_ERROR", "hardware stack error"),
    715: ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction was encountered"),
    716: ("CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"),
    717: ("CUDA_ERROR_INVALID_ADDRESS_SPACE", "operation not supported on global/shared address space"),
    718: ("CUDA_ERROR_INVALID_PC", "invalid program counter"),
    719: ("CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"),
    721: ("CUDA_ERROR_TENSOR_MEMORY_LEAK", "tensor memory not completely deallocated"),
    803: ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"),
    900: ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"),
    901: ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"),
    906: (
        "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        "operation would make the legacy stream depend on a capturing blocking stream",
    ),
    908: (
        "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
        "attempt to terminate a thread-local capture sequence from another thread",
    ),
    999: ("CUDA_ERROR_UNKNOWN", "unknown error"),
}
STICKY = {226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 999}
Fault = Literal[
    "copies-whole-words",
    "replays-first-image",
    "pinned-elsewhere",
    "mapped-elsewhere",
    "launch-fails",
    "queue-reversed",
    "no-capture",
    "release-ends-context",
    "leaks",
    "trap-ignored",
    "aborts",
    "no-device",
]
"""What a driver may do wrong without saying so: cut a copy, forget the image, mix up memory, run out of order, ..."""
FRESH, FREED = 0xCD, 0xDD
GUARD_BYTES = 4096
DEVMAP = 2


class CudaFault(Exception):
    """A call that the driver answers with a CUresult other than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{ERRORS[code][0]} ({code})")
        self.code = code


@dataclass
class Memory:
    """One allocation. ``bytes`` outlives it, so that a forgotten pointer reads 0xDD and does not end the process."""

    kind: str
    size: int
    bytes: ctypes.Array[ctypes.c_char]
    address: int
    """Of the CPU's pointer if it is host memory."""
    device_address: int | None
    is_mapped: bool = True
    is_freed: bool = False
    shadow: ctypes.Array[ctypes.c_char] | None = None
    """What the CPU sees instead, where the driver is at fault."""


Work = Callable[[], None]


@dataclass
class Capture:
    thread: int
    works: list[Work] = field(default_factory=list)
    is_invalid: bool = False


@dataclass
class Stream:
    thread: int = field(default_factory=threading.get_ident)
    queue: deque[Work] = field(default_factory=deque)
    capture: Capture | None = None


class FakeDriver(KernelCalls):
    """The driver, one GPU, and everything that is wrong with how they are used."""

    _current: ClassVar[FakeDriver | None] = None

    def __init__(
        self, *, version: int = 12060, bindings: int | None = None, memory_bytes: int = 8 << 30, can_map: bool = True
    ) -> None:
        """Make a driver.

        Args:
            version: Newest CUDA that it supports, 12060 for 12.6; functions that came later are not there.
            bindings: CUDA that ``cuda.bindings`` was made for; as ``version`` where absent.
            memory_bytes: Of the GPU.
            can_map: Whether host memory can be mapped.
        """
        super().__init__()
        self.version = version
        self.bindings = version if bindings is None else bindings
        self.memory_bytes = memory_bytes
        self.can_map = can_map
        self.refuse_capture = False
        """Whether work that is enqueued while capturing breaks the capture, as what TensorRT cannot capture does."""
        self.faults: set[Fault] = set()
        self.misuse: list[str] = []
        self.calls: Counter[str] = Counter()
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.lost: int | None = None
        self.holders = 0
        """How often the primary context is retained."""
        self._lock = threading.RLock()
        self._bugs: list[Exception] = []
        self._injected: dict[str, dict[int, int]] = {}
        self._is_initialized = False
        self._default_stream = Stream()
        self._memories: list[Memory] = []
        self._stacks: dict[int, list[int]] = {}
        self._context = 0
        self._addresses = itertools.count(0x2_0000_0000, 512)
        self._handles = itertools.count(0x5EED_0001)

    @classmethod
    def current(cls) -> FakeDriver:
        """The driver that is installed."""
        if cls._current is None:
            raise LookupError("no fake driver is installed: FakeDriver().install(monkeypatch)")
        return cls._current

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
        """Put the driver where all back ends look for it, for as long as the test runs."""
        from tests.engines.fakes import driver_bindings, driver_library, driver_pycuda

        monkeypatch.setattr(FakeDriver, "_current", self)
        driver_library.install(self, monkeypatch)
        driver_bindings.install(self, monkeypatch)
        driver_pycuda.install(self, monkeypatch)
        return self

    # What a test asks for and looks at

    def fail(self, function: str, code: int, *, nth: int = 1) -> None:
        """Let the n-th call from now on fail; after a sticky code, everything does."""
        self._injected.setdefault(function, {})[self.calls[function] + nth] = code

    def alive(self) -> list[str]:
        """What was not given back, but for modules, which end with their context."""
        memories = [f"{memory.size} bytes of {memory.kind} memory" for memory in self._memories if not memory.is_freed]
        return [
            *memories,
            *(f"stream {handle:#x}" for handle in self.streams),
            *(f"graph {handle:#x}" for handle in self.graphs),
            *(f"executable graph {handle:#x}" for handle in self.executables),
        ]

    def stack(self) -> list[int]:
        """Contexts of this thread, the current one last."""
        return self._stacks.setdefault(threading.get_ident(), [])

    def take_misuse(self) -> list[str]:
        """What was wrong so far; forgets it."""
        taken, self.misuse = self.misuse, []
        return taken

    def check(self) -> None:
        """Raise if anything was wrong, or if work raised."""
        if self._bugs:
            raise self._bugs[0]
        assert self.misuse == [], self.misuse

    # What a fake TensorRT needs

    def enqueue(self, stream: int, work: Work) -> None:
        """Queue work, or record it while the stream is capturing.

        Raises:
            CudaFault: As CUDA would refuse it.
        """
        self._raise_if_lost()
        self._check_context("enqueue")
        queue = self._stream(stream)
        if stream == 0 and any(other.capture for other in self.streams.values()):
            self._invalidate_captures()
            raise self._wrong(CAPTURE_IMPLICIT, "work on the default stream while another one is capturing")
        if queue.capture is None:
            queue.queue.append(work)
            return
        if queue.capture.is_invalid:
            raise CudaFault(CAPTURE_INVALIDATED)
        if self.refuse_capture or "no-capture" in self.faults:
            queue.capture.is_invalid = True
            raise CudaFault(CAPTURE_UNSUPPORTED)
        queue.capture.works.append(work)

    def view(self, address: int, size_bytes: int) -> memoryview:
        """Device or mapped host memory, as a kernel sees it.

        Raises:
            CudaFault: It is not (any longer) allocated.
        """
        memory, offset = self._device_range(address, size_bytes, ILLEGAL_ADDRESS)
        return memoryview(memory.bytes).cast("B")[offset : offset + size_bytes]

    # How the three ways in come here

    def call(self, function: str, *arguments: int) -> tuple[int, ...]:
        """Perform a function of the driver API: its CUresult, then what it returns."""
        with self._lock:
            return self._perform(function, *arguments)

    def _perform(self, function: str, *arguments: int) -> tuple[int, ...]:
        self.calls[function] += 1
        try:
            if function == "cuDriverGetVersion":
                return 0, self.version
            self._raise_if_lost()
            code = self._injected.get(function, {}).pop(self.calls[function], 0)
            if code:
                self._lose(code)
                return (code,)
            if not self._is_initialized and function != "cuInit":
                raise self._wrong(NOT_INITIALIZED, f"{function} before cuInit")
            return 0, *getattr(self, f"_{function}")(*arguments)
        except CudaFault as fault:
            return (fault.code,)
        except Exception as bug:  # must not be lost in a callback from C
            self._bugs.append(bug)
            return (self._lose(999),)

    # The functions

    def _cuInit(self, flags: int) -> tuple[int, ...]:
        if flags != 0:
            raise self._wrong(INVALID_VALUE, "cuInit with flags")
        if "no-device" in self.faults or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            raise CudaFault(NO_DEVICE)
        self._is_initialized = True
        return ()

    def _cuDeviceGet(self, ordinal: int) -> tuple[int, ...]:
        if ordinal != 0:
            raise CudaFault(INVALID_DEVICE)
        return (0,)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, ...]:
        self._check_device(device)
        if self.holders == 0:
            self._context = next(self._handles)
        self.holders += 1
        return (self._context,)

    def _cuDevicePrimaryCtxRelease(self, device: int) -> tuple[int, ...]:
        self._check_device(device)
        if self.holders == 0:
            raise self._wrong(INVALID_CONTEXT, "the primary context was released more often than retained")
        self.holders -= 1 if "release-ends-context" not in self.faults else self.holders
        if self.holders == 0:
            if self.alive() and not self.faults:
                self.misuse.append(f"the primary context ends with {', '.join(self.alive())}")
            self._context = 0
        return ()

    def _cuDevicePrimaryCtxGetState(self, device: int) -> tuple[int, ...]:
        self._check_device(device)
        return 0, int(self.holders > 0)

    def _cuCtxSetCurrent(self, context: int) -> tuple[int, ...]:
        stack = self.stack()
        if context != 0 and context != self._context:
            raise self._wrong(INVALID_CONTEXT, f"{context:#x} made current, which is no context")
        if stack:
            stack.pop()
        if context != 0:
            stack.append(context)
        return ()

    def _cuCtxPushCurrent(self, context: int) -> tuple[int, ...]:
        if context != self._context:
            raise self._wrong(INVALID_CONTEXT, f"{context:#x} pushed, which is no context")
        self.stack().append(context)
        return ()

    def _cuCtxPopCurrent(self) -> tuple[int, ...]:
        if not self.stack():
            raise self._wrong(INVALID_CONTEXT, "a context popped from an empty stack")
        return (self.stack().pop(),)

    def _cuMemAlloc(self, size: int) -> tuple[int, ...]:
        self._check_unsafe("cuMemAlloc")
        memory = self._new_memory("device", size)
        memory.device_address = memory.address = self._new_address(size)
        return (memory.address,)

    def _cuMemFree(self, address: int) -> tuple[int, ...]:
        self._check_unsafe("cuMemFree")
        self._free("device", address)
        return ()

    def _cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, ...]:
        self._check_unsafe("cuMemHostAlloc")
        if flags & ~7:
            raise self._wrong(INVALID_VALUE, f"cuMemHostAlloc with flags {flags}")
        memory = self._new_memory("host", size)
        memory.address = ctypes.addressof(memory.bytes)
        if "pinned-elsewhere" in self.faults:
            memory.shadow = ctypes.create_string_buffer(size)
            memory.address = ctypes.addressof(memory.shadow)
        # Where a real driver gives the pointer of the CPU, this one gives another, so that they are not mixed up.
        memory.device_address = self._new_address(size)
        memory.is_mapped = bool(flags & DEVMAP)
        return (memory.address,)

    def _cuMemHostGetDevicePointer(self, pointer: int, flags: int) -> tuple[int, ...]:
        self._check_context("cuMemHostGetDevicePointer")
        memory = self._find("host", pointer)
        if flags != 0 or not memory.is_mapped:
            raise self._wrong(INVALID_VALUE, "device pointer of host memory that was not asked to be mapped")
        if not self.can_map or memory.device_address is None:
            raise CudaFault(INVALID_VALUE)
        if "mapped-elsewhere" in self.faults:
            return self._cuMemAlloc(memory.size)
        return (memory.device_address,)

    def _cuMemFreeHost(self, pointer: int) -> tuple[int, ...]:
        self._check_unsafe("cuMemFreeHost")
        self._free("host", pointer)
        return ()

    def _cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int, ...]:
        self._device_range(target, size, INVALID_VALUE)
        size = self._copied(size)
        if "replays-first-image" in self.faults and self._stream(stream).capture is not None:
            frozen = self._read_pinned(source, size)
            self.enqueue(stream, lambda: self._write(target, frozen))
        elif self._is_pinned(source, size):
            self.enqueue(stream, lambda: self._write(target, self._read_pinned(source, size)))
        else:
            self._check_pageable(stream)
            content = ctypes.string_at(source, size)
            self.enqueue(stream, lambda: self._write(target, content))
        return ()

    def _cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int, ...]:
        self._device_range(source, size, INVALID_VALUE)
        size = self._copied(size)
        if self._is_pinned(target, size):
            self.enqueue(stream, lambda: self._write_pinned(target, bytes(self.view(source, size))))
        else:
            self._check_pageable(stream)
            self.enqueue(stream, lambda: _write_host(target, bytes(self.view(source, size))))
            self._run(self._stream(stream))
        return ()

    def _cuStreamCreate(self, flags: int) -> tuple[int, ...]:
        self._check_context("cuStreamCreate")
        if flags not in (0, 1):
            raise self._wrong(INVALID_VALUE, f"a stream with flags {flags}")
        if flags == 0:
            self.misuse.append("a stream that waits for the default stream")
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return (handle,)

    def _cuStreamDestroy(self, stream: int) -> tuple[int, ...]:
        self._check_context("cuStreamDestroy")
        if self._stream(stream) is self._default_stream:
            raise self._wrong(INVALID_HANDLE, "the default stream destroyed")
        if self.streams[stream].capture is not None:
            raise self._wrong(CAPTURE_UNSUPPORTED, "a stream destroyed while capturing")
        if self.streams[stream].queue:
            raise self._wrong(INVALID_VALUE, "a stream destroyed with work in flight")
        del self.streams[stream]
        return ()

    def _cuStreamSynchronize(self, stream: int) -> tuple[int, ...]:
        self._check_context("cuStreamSynchronize")
        queue = self._stream(stream)
        if queue.capture is not None:
            queue.capture.is_invalid = True
            raise self._wrong(CAPTURE_UNSUPPORTED, "a stream synchronized while capturing")
        self._run(queue)
        return ()

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int, ...]:
        self._check_context("cuStreamBeginCapture")
        queue = self._stream(stream)
        if queue is self._default_stream:
            raise self._wrong(CAPTURE_UNSUPPORTED, "capture of the default stream")
        if queue.capture is not None:
            raise self._wrong(ILLEGAL_STATE, "capture of a stream that is capturing")
        if mode != 1:
            raise self._wrong(INVALID_VALUE, f"capture in mode {mode}, not thread-local")
        queue.capture = Capture(threading.get_ident())
        return ()

    def _cuStreamEndCapture(self, stream: int) -> tuple[int, ...]:
        self._check_context("cuStreamEndCapture")
        queue = self._stream(stream)
        capture = queue.capture
        if capture is None:
            raise self._wrong(ILLEGAL_STATE, "end of a capture that was not begun")
        if capture.thread != threading.get_ident():
            raise self._wrong(CAPTURE_WRONG_THREAD, "end of a capture that another thread began")
        queue.capture = None
        if capture.is_invalid:
            raise CudaFault(CAPTURE_INVALIDATED)
        handle = next(self._handles)
        self.graphs[handle] = capture.works
        return (handle,)

    def _cuGraphInstantiateWithFlags(self, graph: int, flags: int) -> tuple[int, ...]:
        self._check_context("cuGraphInstantiateWithFlags")
        if graph not in self.graphs or flags != 0:
            raise self._wrong(INVALID_VALUE, f"{graph:#x} instantiated, which is no graph, or with flags {flags}")
        handle = next(self._handles)
        self.executables[handle] = self.graphs[graph]
        return (handle,)

    def _cuGraphDestroy(self, graph: int) -> tuple[int, ...]:
        if self.graphs.pop(graph, None) is None:
            raise self._wrong(INVALID_VALUE, f"{graph:#x} destroyed, which is no graph")
        return ()

    def _cuGraphLaunch(self, executable: int, stream: int) -> tuple[int, ...]:
        works = self.executables.get(executable)
        if works is None:
            raise self._wrong(INVALID_VALUE, f"{executable:#x} launched, which is no executable graph")
        for work in works:
            self.enqueue(stream, work)
        return ()

    def _cuGraphExecDestroy(self, executable: int) -> tuple[int, ...]:
        self._check_context("cuGraphExecDestroy")
        if executable not in self.executables:
            raise self._wrong(INVALID_VALUE, f"{executable:#x} destroyed, which is no executable graph")
        self._check_idle("an executable graph destroyed")
        del self.executables[executable]
        return ()

    # What they share

    def _wrong(self, code: int, text: str) -> CudaFault:
        """Note a misuse; returns what to raise."""
        self.misuse.append(text)
        return CudaFault(code)

    def _fault(self, code: int) -> CudaFault:
        return CudaFault(code)

    def _lose(self, code: int) -> int:
        if code in STICKY:
            self.lost = code
        return code

    def _raise_if_lost(self) -> None:
        if self.lost is not None:
            raise CudaFault(self.lost)

    def _check_device(self, device: int) -> None:
        if device != 0:
            raise self._wrong(INVALID_DEVICE, f"device {device}")

    def _check_context(self, what: str) -> None:
        stack = self.stack()
        if not stack:
            raise self._wrong(INVALID_CONTEXT, f"{what} in a thread without a current context")
        if stack[-1] != self._context:
            raise self._wrong(CONTEXT_IS_DESTROYED, f"{what} in a context that has ended")

    def _check_unsafe(self, what: str) -> None:
        """What is not queued on a stream cannot be captured, nor be done by a thread that is capturing."""
        self._check_context(what)
        mine = [s.capture for s in self.streams.values() if s.capture and s.capture.thread == threading.get_ident()]
        if mine:
            self._invalidate_captures()
            raise self._wrong(CAPTURE_UNSUPPORTED, f"{what} while capturing")

    def _check_pageable(self, stream: int) -> None:
        capture = self._stream(stream).capture
        if capture is not None:
            capture.is_invalid = True
            raise self._wrong(CAPTURE_UNSUPPORTED, "a copy of memory that is not pinned while capturing")

    def _copied(self, size: int) -> int:
        return size // 4 * 4 or size if "copies-whole-words" in self.faults else size

    def _check_idle(self, what: str) -> None:
        """Work of this thread; a real driver waits for what others do."""
        mine = (stream for stream in self.streams.values() if stream.thread == threading.get_ident())
        if any(stream.queue for stream in (self._default_stream, *mine)):
            raise self._wrong(INVALID_VALUE, f"{what} with work in flight")

    def _invalidate_captures(self) -> None:
        for stream in self.streams.values():
            if stream.capture is not None:
                stream.capture.is_invalid = True

    def _stream(self, stream: int) -> Stream:
        if stream == 0:
            return self._default_stream
        if stream not in self.streams:
            raise self._wrong(INVALID_HANDLE, f"{stream:#x} used, which is no stream")
        return self.streams[stream]

    def _run(self, stream: Stream) -> None:
        while stream.queue:
            work = stream.queue.pop() if "queue-reversed" in self.faults else stream.queue.popleft()
            try:
                work()
            except CudaFault as fault:
                raise CudaFault(self._lose(fault.code)) from fault

    def _free_bytes(self) -> int:
        lost = "leaks" in self.faults
        return self.memory_bytes - sum(memory.size for memory in self._memories if lost or not memory.is_freed)

    def _new_address(self, size: int) -> int:
        address = next(self._addresses)
        skipped = (size + GUARD_BYTES) // 512 + 1
        next(itertools.islice(self._addresses, skipped, skipped), None)
        return address

    def _new_memory(self, kind: str, size: int) -> Memory:
        if size <= 0:
            raise self._wrong(INVALID_VALUE, f"{size} bytes allocated")
        if size > self._free_bytes():
            raise CudaFault(OUT_OF_MEMORY)
        content = ctypes.create_string_buffer(bytes([FRESH]) * size, size)
        self._memories.append(Memory(kind, size, content, 0, None))
        return self._memories[-1]

    def _find(self, kind: str, address: int) -> Memory:
        # The latest first: the CPU's addresses are used again.
        for memory in reversed(self._memories):
            if memory.kind == kind and memory.address == address:
                if memory.is_freed:
                    raise self._wrong(INVALID_VALUE, f"{kind} memory used or freed after it was freed")
                return memory
        raise self._wrong(INVALID_VALUE, f"{address:#x}, which is no start of {kind} memory")

    def _free(self, kind: str, address: int) -> None:
        memory = self._find(kind, address)
        self._check_idle(f"{kind} memory freed")
        memory.is_freed = True
        ctypes.memset(memory.bytes, FREED, memory.size)

    def _device_range(self, address: int, size: int, code: int) -> tuple[Memory, int]:
        """Where the GPU finds a range of addresses."""
        for memory in reversed(self._memories):
            start = memory.device_address
            if start is None or not start - GUARD_BYTES < address < start + memory.size + GUARD_BYTES:
                continue
            if memory.is_freed:
                raise self._wrong(code, f"{memory.kind} memory used by the GPU after it was freed")
            if not memory.is_mapped:
                raise self._wrong(code, "host memory used by the GPU that is not mapped")
            if address < start or address + size > start + memory.size:
                raise self._wrong(
                    code, f"{size} bytes at offset {address - start} of {memory.size} bytes of {memory.kind} memory"
                )
            return memory, address - start
        raise self._wrong(code, f"{address:#x}, which is no memory of the GPU")

    def _host_range(self, pointer: int, size: int) -> Memory | None:
        """The pinned memory that a pointer of the CPU belongs to."""
        for memory in reversed(self._memories):
            if memory.kind == "host" and memory.address <= pointer < memory.address + memory.size:
                if memory.is_freed:
                    raise self._wrong(INVALID_VALUE, "host memory copied after it was freed")
                if pointer + size > memory.address + memory.size:
                    raise self._wrong(INVALID_VALUE, f"{size} bytes copied of {memory.size} bytes of host memory")
                return memory
        return None

    def _is_pinned(self, pointer: int, size: int) -> bool:
        return self._host_range(pointer, size) is not None

    def _read_pinned(self, pointer: int, size: int) -> bytes:
        memory = self._host_range(pointer, size)
        if memory is not None and memory.shadow is not None:
            return memory.bytes.raw[pointer - memory.address :][:size]
        return ctypes.string_at(pointer, size)

    def _write_pinned(self, pointer: int, content: bytes) -> None:
        memory = self._host_range(pointer, len(content))
        if memory is None or memory.shadow is None:
            _write_host(pointer, content)

    def _write(self, address: int, content: bytes) -> None:
        self.view(address, len(content))[:] = content


def _write_host(pointer: int, content: bytes) -> None:
    ctypes.memmove(pointer, content, len(content))
