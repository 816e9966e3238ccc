"""grpcio, one bidirectional stream from the client to the front, and one from there to each worker."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.network.bare import Children, receive
from benchmarks.peers.grpc_unary import METHOD, open_channel, serve
from benchmarks.peers.peer import Ordered, Queued, Reply
from benchmarks.peers.work import Work

from devit_contract.arrays import UInt8Array

Sink = queue.SimpleQueue[bytes]


class GrpcStreams(Queued):
    """Answers come in the order of the images."""

    name = "grpcio streams"
    needs = ("grpc",)

    def start(self, stack: ExitStack) -> None:
        """Start front and workers, and open the stream."""
        children = stack.enter_context(Children())
        workers = [children.start(_worker, self.work, device) for device in range(self.work.devices)]
        front = children.start(_front, self.work, [receive(worker, int) for worker in workers])
        channel = stack.enter_context(open_channel(receive(front, int)))
        self._images, self._answers = open_stream(channel)
        self._many, answers = open_stream(channel)
        self._order = Ordered()
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()

    def ask(self, image: UInt8Array) -> Reply:
        """Send one image and take its answer."""
        self._images.put(image.tobytes())
        return self.reply(next(self._answers))

    def submit(self, image: UInt8Array, number: int) -> None:
        """Send one image on a stream whose answers a thread takes."""
        self._order.sent(number)
        self._many.put(image.tobytes())

    def _read(self, answers: Iterator[bytes]) -> None:
        try:
            for _ in answers:
                self.done.put(self._order.answered(1)[0])
        except Exception as err:
            self.done.put(err)


def open_stream(channel: Any) -> tuple[Sink, Iterator[bytes]]:  # noqa: ANN401 - grpcio ships no types
    """Open a stream: what is put into the queue is sent, what comes is iterated over."""
    sink: Sink = queue.SimpleQueue()
    return sink, channel.stream_stream(METHOD)(iter(sink.get, None))


def _worker(parent: Connection, work: Work, device: int) -> None:
    answer = work.worker(device)
    serve(parent, "stream_stream", lambda images, _context: map(answer, images))


def _front(parent: Connection, work: Work, ports: list[int]) -> None:
    serve(parent, "stream_stream", partial(_classify, [open_channel(port) for port in ports], work.front()))


def _classify(
    channels: list[Any], fuse: Callable[[list[bytes]], bytes], images: Iterable[bytes], _context: object
) -> Iterator[bytes]:
    from grpc import RpcError

    streams = [open_stream(channel) for channel in channels]

    def fan_out() -> None:
        with suppress(RpcError):  # the client hung up
            for image in images:
                for sink, _ in streams:
                    sink.put(image)

    threading.Thread(target=fan_out, daemon=True).start()
    for features in zip(*(answers for _, answers in streams), strict=True):
        yield fuse(list(features))
