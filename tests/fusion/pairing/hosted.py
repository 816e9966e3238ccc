"""A host of pairing on a real port of this machine, run by a thread, and joiners that speak by hand."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.keys import KeyPair, new_keys
from devit_contract.service.journal import Log, Priority
from devit_contract.wire.pairing import (
    HEADER,
    MAX_REPLY_BYTES,
    Channel,
    Handshake,
    Introduction,
    Kind,
    Message,
    decode,
    encode,
    read_header,
)
from devit_fusion.pairing.host import Host, Joined
from devit_fusion.pairing.offer import Offer
from devit_fusion.pairing.tries import Tries

CODE = "K7Q-4MX"
WRONG = "K7Q-4MY"


class KeptLog(Log):
    """A log that a test reads."""

    def __init__(self) -> None:
        super().__init__("devit-pair")
        self.lines: list[str] = []

    def log(self, priority: Priority, text: str, **fields: str) -> None:
        self.lines.append(text)


def write_fleet(folder: Path) -> Path:
    """Write a fleet of jetson1, submodel 0, on loopback; its keys lie in ``keys``."""
    keys = {name: new_keys(folder / "keys", name) for name in ("node", "jetson1")}
    text = f"""\
schema = 2

[node]
endpoint = "tcp://127.0.0.1:7711"
client_endpoint = "tcp://127.0.0.1:7712"
public_key = "{keys["node"].public.decode()}"

[[device]]
name = "jetson1"
submodel = 0
public_key = "{keys["jetson1"].public.decode()}"
"""
    write_bytes(folder / "fleet.toml", text.encode())
    return folder / "fleet.toml"


class Hosted:
    """A host that runs, and what it has logged."""

    def __init__(self, host: Host, log: KeptLog, timeout_s: float) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.log = log
        self.joined: Joined | None = None
        self.error: Exception | None = None
        self.bugs: list[dict[str, object]] = []
        """What the event loop would have logged: exceptions that nobody has named."""
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(host, timeout_s))
        self._thread.start()
        assert self._has_begun.wait(20)

    def wait(self, timeout_s: float = 20.0) -> None:
        """Wait until it has ended by itself."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self.wait()
        self._listening.close()

    def _run(self, host: Host, timeout_s: float) -> None:
        async def serve() -> Joined:
            self._loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            self._task = task
            self._loop.set_exception_handler(lambda _loop, context: self.bugs.append(context))
            self._has_begun.set()
            return await host.serve(self._listening, timeout_s)

        try:
            self.joined = asyncio.run(serve())
        except asyncio.CancelledError:
            pass
        except Exception as err:  # looked at by the test
            self.error = err


@contextmanager
def hosted(
    offer: Offer, *, tries: Tries | None = None, handshake_s: float = 10.0, timeout_s: float = 60.0
) -> Iterator[Hosted]:
    """Run a host with the code :data:`CODE` while the block runs."""
    log = KeptLog()
    running = Hosted(Host(CODE, offer, log, tries=tries, handshake_s=handshake_s), log, timeout_s)
    try:
        yield running
    finally:
        running.close()
    assert running.bugs == [], [repr(each) for each in running.bugs]


class Joiner:
    """A joiner that does each step when a test says so."""

    def __init__(self, port: int, code: str = CODE) -> None:
        self.link = socket.create_connection(("127.0.0.1", port), 20)
        self._handshake = Handshake(code, "joiner")
        self.channel: Channel | None = None

    def greet(self) -> Kind:
        """Exchange hellos; tell what came."""
        self.link.sendall(self._handshake.hello)
        kind, body = self.receive()
        if kind is Kind.HELLO:
            self.channel = self._handshake.finish(body)
        return kind

    def send(self, message: Message) -> None:
        assert self.channel is not None
        self.link.sendall(self.channel.seal(encode(message)))

    def prove(self, name: str, keys: KeyPair) -> None:
        self.send(Introduction(name, keys.public.decode()))

    def receive(self) -> tuple[Kind, bytes]:
        kind, size = read_header(self._read(HEADER.size), *Kind, most_bytes=MAX_REPLY_BYTES)
        return kind, self._read(size)

    def opened(self) -> Message:
        kind, body = self.receive()
        assert kind is Kind.SEALED
        assert self.channel is not None
        return decode(self.channel.open(body))

    def is_cut(self) -> bool:
        """Wait until the host has ended the connection."""
        try:
            return self.link.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.link.close()

    def __enter__(self) -> Joiner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.link.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data
