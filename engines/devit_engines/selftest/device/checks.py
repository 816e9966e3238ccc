"""The checks of one way to CUDA. Each runs what an engine does, by the classes that engines use, and looks at bytes."""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.choices import CudaChoice
from devit_contract.errors import DeviceLostError, EngineError
from devit_engines.cuda.api import Cuda, HostBuffer
from devit_engines.cuda.open import open_cuda
from devit_engines.selftest.device.kernel import (
    CAN_MAP_HOST_MEMORY,
    IMAGE_SHAPE,
    DeviceCalls,
    KernelEngine,
    Kernels,
    expected,
)
from devit_engines.selftest.device.result import Row

REPLAYS = 1000
_PLAIN_RUNS = 200
_SIZES = (1, 511, 4097, math.prod(IMAGE_SHAPE), 3 * 224 * 224 + 1)
_GUARD = 16
"""Bytes behind a copy that it must leave as they are."""
_LARGE_BYTES = (8 << 20) + 1
_PICTURES = 12
_LEAK_BYTES, _LEAK_ROUNDS = 32 << 20, 3


class Skipped(Exception):
    """A check that means nothing on this machine."""


def run_checks(way: CudaChoice, report: Callable[[Row], None]) -> None:
    """Report a row for every check; after the GPU's context is lost, the rest is skipped."""
    lost = False
    for name, check in CHECKS.items():
        if lost:
            report(Row(way, name, "skipped", None, "an earlier check lost CUDA"))
            continue
        start_s = time.perf_counter()
        try:
            note = check(way)
        except Skipped as reason:
            report(Row(way, name, "skipped", None, str(reason)))
        except EngineError as err:
            lost = isinstance(err, DeviceLostError)
            report(Row(way, name, "fail", _since_ms(start_s), str(err)))
        else:
            report(Row(way, name, "pass", _since_ms(start_s), note))


def lose_context(way: CudaChoice) -> None:
    """Let a kernel trap, which loses CUDA to this process: the :class:`DeviceLostError` of the second call after it.

    The instruction ``trap`` stops the kernel and touches no memory; what other processes do continues.
    """
    cuda = open_cuda(way)
    stream, kernels = cuda.create_stream(), Kernels()
    kernels.launch("fault", 1, stream)
    try:
        cuda.synchronize(stream)
    except DeviceLostError:
        cuda.allocate(8)
        raise EngineError("expected cuMemAlloc to fail after CUDA was lost, found success: report this") from None
    raise EngineError("expected cuStreamSynchronize to fail after a kernel trapped, found success: report this")


def can_open(way: CudaChoice) -> str | None:
    """Open and close it twice, as an agent that is given a new bundle does."""
    for _ in range(2):
        open_cuda(way).close()
    return None


def pinned_memory(way: CudaChoice) -> str | None:
    """What the CPU writes into one pinned buffer is in another, after a copy to the GPU and back."""
    with _things(way, 4096) as things:
        for seed in range(8):
            sent = _noise(4096, seed)
            things.source.array[:], things.target.array[:] = sent, 0
            things.there_and_back()
            _compare("a pinned buffer copied to the GPU and back", things.target.array, sent)
    return None


def device_memory(way: CudaChoice) -> str | None:
    """Copies of odd sizes are whole, and leave what is behind them."""
    for size in _SIZES:
        with _things(way, size + _GUARD) as things:
            sent = _noise(size + _GUARD, size)
            things.source.array[:] = 0xA5
            things.there_and_back()
            things.source.array[:], things.target.array[size:] = sent, 0x5A
            things.there_and_back(size)
            _compare(f"{size} bytes copied to the GPU and back", things.target.array[:size], sent[:size])
            _compare(f"what is behind {size} bytes of the CPU", things.target.array[size:], _guard(0x5A))
            things.copy_back()
            _compare(f"what is behind {size} bytes of the GPU", things.target.array[size:], _guard(0xA5))
    return None


def kernel_runs(way: CudaChoice) -> str | None:
    """An engine without a CUDA graph."""
    with KernelEngine(partial(open_cuda, way), use_graph=False) as engine:
        _check_runs(engine, 8)
    return None


def mapped_memory(way: CudaChoice) -> str | None:
    """The GPU reads and writes memory of the CPU in place."""
    _skip_without_mapping(way)
    count = math.prod(IMAGE_SHAPE)
    with closing(open_cuda(way)) as cuda:
        source, target = (cuda.allocate_host(size, mapped=True) for size in (count, 4 * count))
        stream, kernels = cuda.create_stream(), Kernels()
        for seed in range(8):
            source.array[:] = _noise(count, seed)
            kernels.affine(source.device_address or 0, target.device_address or 0, count, stream)
            cuda.synchronize(stream)
            _compare("mapped memory, written by the GPU", target.array.view(np.float32), expected(source.array))
        kernels.close()
        cuda.destroy_stream(stream)
        cuda.free_host(target)
        cuda.free_host(source)
    return None


def stream_order(way: CudaChoice) -> str | None:
    """Pictures that are queued at once go through the same device memory one after the other."""
    size = math.prod(IMAGE_SHAPE)
    with closing(open_cuda(way)) as cuda:
        stream, kernels = cuda.create_stream(), Kernels()
        source_address, target_address = cuda.allocate(size), cuda.allocate(4 * size)
        pairs = [(cuda.allocate_host(size), cuda.allocate_host(4 * size)) for _ in range(_PICTURES)]
        for seed, (source, target) in enumerate(pairs):
            source.array[:] = _noise(size, seed)
            cuda.copy_to_device(source_address, source, size, stream)
            kernels.affine(source_address, target_address, size, stream)
            cuda.copy_to_host(target, target_address, 4 * size, stream)
        cuda.synchronize(stream)
        for number, (source, target) in enumerate(pairs):
            found = target.array.view(np.float32)
            _compare(f"picture {number} of {_PICTURES} in one stream", found, expected(source.array))
        kernels.close()
        for buffer in (buffer for pair in pairs for buffer in pair):
            cuda.free_host(buffer)
        cuda.free(target_address)
        cuda.free(source_address)
        cuda.destroy_stream(stream)
    return None


def two_streams(way: CudaChoice) -> str | None:
    """Large copies of two streams are under way at once."""
    with closing(open_cuda(way)) as cuda:
        both = [_Things.of(cuda, _LARGE_BYTES) for _ in range(2)]
        for seed, things in enumerate(both):
            things.source.array[:] = _noise(_LARGE_BYTES, seed)
        start_s = time.perf_counter()
        for things in both:
            things.queue()
        for things in both:
            cuda.synchronize(things.stream)
        taken_s = time.perf_counter() - start_s
        for things in both:
            _compare("a large copy beside another", things.target.array, things.source.array)
            things.give_back()
    return f"{4 * _LARGE_BYTES / taken_s / 1e9:.1f} GB/s"


def graph_replay(way: CudaChoice) -> str | None:
    """An engine that replays a CUDA graph sees the image of now, a thousand times."""
    with KernelEngine(partial(open_cuda, way), use_graph=False) as engine:
        plain_ms = _check_runs(engine, _PLAIN_RUNS)
    replayed_ms = _replayed_ms(way)
    return f"p50 {replayed_ms:.3f} ms, {plain_ms:.3f} ms without a graph"


def mapped_graph_replay(way: CudaChoice) -> str | None:
    """The same without copies."""
    _skip_without_mapping(way)
    return f"p50 {_replayed_ms(way, is_mapped=True):.3f} ms"


def two_threads(way: CudaChoice) -> str | None:
    """Two threads with an engine each do not disturb one another; a third may use neither."""
    failures: list[EngineError] = []

    def use() -> None:
        try:
            with KernelEngine(partial(open_cuda, way)) as engine:
                _check_runs(engine, _PLAIN_RUNS)
        except EngineError as err:
            failures.append(err)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    with closing(open_cuda(way)) as cuda:
        refused: list[EngineError] = []
        thread = threading.Thread(target=lambda: refused.extend(_refusal(cuda.create_stream)))
        thread.start()
        thread.join()
        if not refused or "which opened CUDA" not in str(refused[0]):
            found = refused[0] if refused else "success"
            raise EngineError(f"expected another thread to be refused, found {found}: report this")
    return None


def garbage_collection(way: CudaChoice) -> str | None:
    """An engine outlives others that were closed and collected."""
    with KernelEngine(partial(open_cuda, way)) as engine:
        for _ in range(2):
            with KernelEngine(partial(open_cuda, way)) as other:
                _check_runs(other, 2)
            del other
            gc.collect()
            _check_runs(engine, 2)
    return None


def use_after_close(way: CudaChoice) -> str | None:
    """Everything says that it is closed, and nothing reaches the driver."""
    cuda = open_cuda(way)
    engine = KernelEngine(partial(open_cuda, way))
    for closed in (engine, cuda):
        closed.close()
        closed.close()
    image = np.zeros((1, *IMAGE_SHAPE), np.uint8)
    for what, use in (("CUDA", cuda.create_stream), ("the engine", lambda: engine.features(image))):
        (refusal,) = _refusal(use) or (None,)
        if refusal is None or "closed" not in str(refusal):
            raise EngineError(f"expected {what} to say that it is closed, found {refusal or 'success'}: report this")
    return None


def memory_returned(way: CudaChoice) -> str | None:
    """What was given back is free; other programs may take and return some meanwhile, so a leak has to show thrice."""
    calls = DeviceCalls()
    with closing(open_cuda("ctypes")):  # the context itself stays
        kept: list[int] = []
        for _ in range(_LEAK_ROUNDS):
            before = calls.free_bytes()
            for _ in range(4):
                with KernelEngine(partial(open_cuda, way)), closing(open_cuda(way)) as cuda:
                    cuda.free(cuda.allocate(_LEAK_BYTES // 4))
            kept.append(before - calls.free_bytes())
            if kept[-1] < _LEAK_BYTES // 2:
                return None
    raise EngineError(
        f"expected all memory back, found {min(kept) >> 20} MiB missing after each of {_LEAK_ROUNDS} rounds: "
        "stop other programs that use the GPU, and run it again"
    )


CHECKS: dict[str, Callable[[CudaChoice], str | None]] = {
    "opens": can_open,
    "pinned memory": pinned_memory,
    "device memory": device_memory,
    "kernel": kernel_runs,
    "mapped memory": mapped_memory,
    "stream order": stream_order,
    "two streams": two_streams,
    "graph replay": graph_replay,
    "graph, mapped": mapped_graph_replay,
    "two threads": two_threads,
    "garbage collection": garbage_collection,
    "use after close": use_after_close,
    "memory returned": memory_returned,
}
"""Name to check, which returns figures; in the order in which they build upon each other."""


@dataclass
class _Things:
    """A stream, device memory, and pinned memory for the way in and out, all of one size."""

    cuda: Cuda
    stream: int
    address: int
    source: HostBuffer
    target: HostBuffer

    @classmethod
    def of(cls, cuda: Cuda, size: int) -> _Things:
        return cls(cuda, cuda.create_stream(), cuda.allocate(size), cuda.allocate_host(size), cuda.allocate_host(size))

    def queue(self) -> None:
        size = self.source.array.size
        self.cuda.copy_to_device(self.address, self.source, size, self.stream)
        self.cuda.copy_to_host(self.target, self.address, size, self.stream)

    def there_and_back(self, size: int | None = None) -> None:
        size = size or self.source.array.size
        self.cuda.copy_to_device(self.address, self.source, size, self.stream)
        self.cuda.synchronize(self.stream)
        self.cuda.copy_to_host(self.target, self.address, size, self.stream)
        self.cuda.synchronize(self.stream)

    def copy_back(self) -> None:
        self.cuda.copy_to_host(self.target, self.address, self.target.array.size, self.stream)
        self.cuda.synchronize(self.stream)

    def give_back(self) -> None:
        self.cuda.free_host(self.target)
        self.cuda.free_host(self.source)
        self.cuda.free(self.address)
        self.cuda.destroy_stream(self.stream)


@contextmanager
def _things(way: CudaChoice, size: int) -> Iterator[_Things]:
    with closing(open_cuda(way)) as cuda:
        things = _Things.of(cuda, size)
        yield things
        things.give_back()


def _replayed_ms(way: CudaChoice, *, is_mapped: bool = False) -> float:
    with KernelEngine(partial(open_cuda, way), host_memory="mapped" if is_mapped else "pinned") as engine:
        _check_runs(engine, 1)
        if engine.notes:
            raise EngineError(engine.notes[0])
        return _check_runs(engine, REPLAYS)


def _check_runs(engine: KernelEngine, runs: int) -> float:
    """Compare every answer with NumPy's; returns the median time of a run in milliseconds."""
    taken_s = np.empty(runs)
    for run in range(runs):
        image = _noise(math.prod(IMAGE_SHAPE), run).reshape(1, *IMAGE_SHAPE)
        start_s = time.perf_counter()
        found = engine.features(image)
        taken_s[run] = time.perf_counter() - start_s
        _compare(f"the kernel's answer to image {run} of {runs}", found, expected(image).reshape(1, -1))
    return float(np.median(taken_s)) * 1e3


def _skip_without_mapping(way: CudaChoice) -> None:
    with closing(open_cuda(way)):
        if not DeviceCalls().attribute(CAN_MAP_HOST_MEMORY):
            raise Skipped("this GPU cannot map memory of the CPU")


def _refusal(use: Callable[[], object]) -> list[EngineError]:
    try:
        use()
    except EngineError as err:
        return [err]
    return []


def _guard(value: int) -> UInt8Array:
    return np.full(_GUARD, value, np.uint8)


def _noise(size: int, seed: int) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def _compare(what: str, found: np.ndarray, wanted: np.ndarray) -> None:
    wrong = np.flatnonzero(found != wanted)
    if wrong.size:
        first = int(wrong[0])
        raise EngineError(
            f"{what}: expected {wanted.flat[first]} at {first}, found {found.flat[first]}; "
            f"{wrong.size} of {wanted.size} values are wrong: report this"
        )


def _since_ms(start_s: float) -> float:
    return round((time.perf_counter() - start_s) * 1e3, 3)
