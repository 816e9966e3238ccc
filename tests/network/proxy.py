"""A TCP proxy that makes a link slow, or cuts it: run as a process, or used by tests through :class:`Proxy`.

Bytes are delayed by a time that varies, in both directions, and keep their order. Commands on standard input, each
acknowledged by a line: ``hold`` keeps all bytes back, as a network without a route does; ``reset`` ends all connections
and refuses new ones; ``go`` ends either.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import select
import socket as tcp
import struct
import subprocess
import sys
from types import TracebackType

_CHUNK_BYTES = 65536
_DEADLINE_S = 20.0
_SEED = 7


class Proxy:
    """A running proxy; a context manager."""

    def __init__(self, target: str, *, delay_ms: float, jitter_ms: float) -> None:
        """Start it.

        Args:
            target: ``tcp://HOST:PORT``: where connections go on to.
            delay_ms: Each way.
            jitter_ms: The delay of each piece lies within so much of it.
        """
        command = [sys.executable, __file__, target.removeprefix("tcp://"), str(delay_ms), str(jitter_ms)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.endpoint = self._read()
        """``tcp://HOST:PORT``: where it listens."""

    def __enter__(self) -> Proxy:
        """Use the proxy in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and all connections."""
        self._process.kill()
        self._process.communicate()

    def tell(self, command: str) -> None:
        """Give it a command, and wait until it has taken effect."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        assert self._read() == command

    def _read(self) -> str:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], _DEADLINE_S)[0], "the proxy does not answer"
        return self._process.stdout.readline().strip()


class _Link:
    """All connections through the proxy."""

    def __init__(self, host: str, port: int, delay_s: float, jitter_s: float) -> None:
        self._target = host, port
        self._delay_s, self._jitter_s = delay_s, jitter_s
        self._random = random.Random(_SEED)
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._open: set[asyncio.StreamWriter] = set()

    def command(self, command: str) -> None:
        """Do what standard input says."""
        if command == "hold":
            self._flows.clear()
        elif command == "reset":
            self._refuses = True
            for writer in list(self._open):
                _reset(writer)
        else:
            self._refuses = False
            self._flows.set()

    async def connected(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        """Carry one connection, both ways, until either side ends it."""
        if self._refuses:
            _reset(near_out)
            return
        await self._flows.wait()
        try:
            far_in, far_out = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(near_out)
            return
        self._open |= {near_out, far_out}
        await asyncio.gather(self._carry(near_in, far_out), self._carry(far_in, near_out))
        self._open -= {near_out, far_out}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(pieces, writer))
        loop, due_s, data = asyncio.get_running_loop(), 0.0, b"-"
        while data:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            delay_s = self._delay_s + self._random.uniform(-self._jitter_s, self._jitter_s)
            due_s = max(due_s, loop.time() + delay_s)
            pieces.put_nowait((due_s, data))
        await delivery

    async def _deliver(self, pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await pieces.get()
            await asyncio.sleep(due_s - loop.time())
            await self._flows.wait()
            if not data:
                writer.close()
                return
            try:
                writer.write(data)
                await writer.drain()
            except OSError:  # the other side has gone; its own direction ends this connection
                writer.close()
                return


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: tcp.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(tcp.SOL_SOCKET, tcp.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("delay_ms", type=float)
    parser.add_argument("jitter_ms", type=float)
    options = parser.parse_args()
    host, port = options.target.rsplit(":", 1)
    link = _Link(host, int(port), options.delay_ms / 1e3, options.jitter_ms / 1e3)
    server = await asyncio.start_server(link.connected, "127.0.0.1", 0)
    print(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        link.command(line.decode().strip())
        print(line.decode().strip(), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
