"""grpcio, one unary call an image: client -> front -> a unary call to each worker. The paper's transport."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from threading import Event
from typing import Any

from benchmarks.network.bare import Children, receive
from benchmarks.peers.peer import ANSWER_S, Queued, Reply
from benchmarks.peers.work import Work

from devit_contract.arrays import UInt8Array

METHOD = "/devit.Cell/Classify"
THREADS = 16
"""Of each server: as many as a client has requests under way."""


class GrpcUnary(Queued):
    """Bytes as they are, without protobuf; insecure channels."""

    name = "grpcio unary"
    needs = ("grpc",)

    def start(self, stack: ExitStack) -> None:
        """Start front and workers."""
        children = stack.enter_context(Children())
        workers = [children.start(_worker, self.work, device) for device in range(self.work.devices)]
        front = children.start(_front, self.work, [receive(worker, int) for worker in workers])
        channel = stack.enter_context(open_channel(receive(front, int)))
        self._call = channel.unary_unary(METHOD)

    def ask(self, image: UInt8Array) -> Reply:
        """Call, and wait."""
        return self.reply(self._call(image.tobytes(), timeout=ANSWER_S))

    def submit(self, image: UInt8Array, number: int) -> None:
        """Call, and have the answer come to a thread of the library."""
        call = self._call.future(image.tobytes(), timeout=ANSWER_S)
        call.add_done_callback(lambda done: self.done.put(done.exception() or number))


def open_channel(port: int) -> Any:  # noqa: ANN401 - grpcio ships no types
    """Connect to a server of this machine."""
    import grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    grpc.channel_ready_future(channel).result(ANSWER_S)
    return channel


def serve(parent: Connection, kind: str, handler: Callable[..., Any]) -> None:
    """Serve one method for ever, and tell the port."""
    import grpc

    server = grpc.server(ThreadPoolExecutor(THREADS))
    rpc = getattr(grpc, f"{kind}_rpc_method_handler")(handler)
    _, service, method = METHOD.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: rpc}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    parent.send(port)
    Event().wait()


def _worker(parent: Connection, work: Work, device: int) -> None:
    answer = work.worker(device)
    serve(parent, "unary_unary", lambda image, _context: answer(image))


def _front(parent: Connection, work: Work, ports: list[int]) -> None:
    calls = [open_channel(port).unary_unary(METHOD) for port in ports]
    serve(parent, "unary_unary", partial(_classify, calls, work.front()))


def _classify(calls: list[Any], fuse: Callable[[list[bytes]], bytes], image: bytes, _context: object) -> bytes:
    features = [call.future(image, timeout=ANSWER_S) for call in calls]
    return fuse([feature.result() for feature in features])
