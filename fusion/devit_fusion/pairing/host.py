"""The node's side of pairing: one port, one code, one device.

Whoever connects may speak for ten seconds before it has proved the code; several may do so at once, but codes are
looked at one by one. Once one joiner has proved it, all others are refused.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from devit_contract.artefacts.fleet import Device
from devit_contract.errors import DevitError, InputError, NoAnswerError, WireError
from devit_contract.printable import printable_line
from devit_contract.service.journal import Log, Priority
from devit_contract.wire.pairing import (
    HANDSHAKE_S,
    HEADER,
    MAX_ASK_BYTES,
    SILENCE_S,
    Added,
    Ask,
    Channel,
    Content,
    Declined,
    Finish,
    Handshake,
    Introduction,
    Kind,
    Message,
    Refusal,
    decode,
    encode,
    read_header,
    refusal,
)
from devit_fusion.pairing.offer import Offer
from devit_fusion.pairing.tries import Tries

MAX_CONNECTIONS = 16
"""At once; the rest is closed unheard."""


@dataclass(frozen=True)
class Joined:
    """The device that has joined."""

    device: Device
    address: str
    """Where it came from."""


class Host:
    """Pairs one device."""

    def __init__(
        self, code: str, offer: Offer, log: Log, *, tries: Tries | None = None, handshake_s: float = HANDSHAKE_S
    ) -> None:
        """Take in who knows ``code``; ``handshake_s`` is how long a stranger may take to prove that."""
        self._code, self._offer, self._log, self._handshake_s = code, offer, log, handshake_s
        self._tries = tries or Tries()
        self._guest = ""
        """Address of the joiner that has proved the code and is served now; empty if none is."""
        self._idle = asyncio.Event()
        """Set while there is no guest."""
        self._idle.set()
        self._meetings: set[asyncio.Task[None]] = set()
        """One a connection."""

    async def serve(self, listening: socket.socket, timeout_s: float) -> Joined:
        """Wait until a device has joined; one that is being served when the time is over may finish.

        Raises:
            NoAnswerError: None has joined in time.
            InputError: The fleet file cannot be written.
        """
        self._joined: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(self._meet, sock=listening)
        try:
            await asyncio.wait([self._joined], timeout=timeout_s)
            server.close()  # nobody comes in any more
            await self._idle.wait()
            if self._joined.done():
                return self._joined.result()
            wrong = f", {self._tries.failed} wrong codes came" if self._tries.failed else ""
            raise NoAnswerError(f"no device has joined in {timeout_s:g} s{wrong}: run devit pair again")
        finally:
            server.close()
            for meeting in self._meetings:
                meeting.cancel()
            await asyncio.gather(*self._meetings, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, meeting = _address(writer), asyncio.current_task()
        assert meeting is not None
        self._meetings.add(meeting)
        line = _Line(reader, writer)
        try:
            try:
                if len(self._meetings) > MAX_CONNECTIONS:
                    self._tell(f"{address}: refused: there are {MAX_CONNECTIONS} connections already")
                else:
                    await self._hear(line, address)
            except (WireError, OSError, EOFError) as err:
                self._tell(f"{address}: ended: {line.told or err}")
            await line.close()
        except asyncio.CancelledError:  # the pairing is over; the streams of Python 3.11 would log it as a bug
            writer.transport.abort()
        finally:
            self._meetings.discard(meeting)
            if self._guest == address:
                self._guest = ""
                self._idle.set()

    async def _hear(self, line: _Line, address: str) -> None:
        with line.within(self._handshake_s):
            proved = await self._prove(line, address)
        if proved is not None:
            channel, introduction = proved
            await self._serve(_Sealed(line, channel), introduction, address)

    async def _prove(self, line: _Line, address: str) -> tuple[Channel, Introduction] | None:
        """Learn whether the joiner knows the code; ``None`` if it was refused, and told why."""
        hello = await line.receive(Kind.HELLO)
        refused = self._objection()
        if refused is None:
            handshake = Handshake(self._code, "node")
            try:
                channel = handshake.finish(hello)
            except WireError as err:
                if err.reason == "version":
                    await line.send(refusal(Refusal.VERSION))
                raise
            await line.send(handshake.hello)
            sealed = await line.receive(Kind.SEALED)
            refused = self._objection()  # what came of others meanwhile; from here on nothing is waited for
        if refused is None:
            try:
                introduction = decode(channel.open(sealed))
                if not isinstance(introduction, Introduction):
                    raise WireError("order", "expected an introduction, found another message")
                self._guest = address
                self._idle.clear()
                return channel, introduction
            except WireError as err:
                if err.reason != "code":
                    raise
                self._tries.wrong()
                refused = Refusal.WRONG_CODE, 0.0, f"wrong code, number {self._tries.failed}{self._pause_note()}"
        reason, pause_s, note = refused
        self._tell(f"{address}: refused: {note}")
        await line.send(refusal(reason, pause_s))
        return None

    def _objection(self) -> tuple[Refusal, float, str] | None:
        """Say why no code is looked at now, if so."""
        if self._guest or self._joined.done():
            return Refusal.BUSY, 0.0, f"{self._guest or 'another device'} is joining already"
        if pause_s := self._tries.pause_s():
            return Refusal.PAUSED, pause_s, f"no code is looked at for {pause_s:.0f} s more"
        return None

    def _pause_note(self) -> str:
        pause_s = self._tries.pause_s()
        return f": no code is looked at for {pause_s:.0f} s" if pause_s else ""

    async def _serve(self, line: _Sealed, introduction: Introduction, address: str) -> None:
        name = printable_line(introduction.name)
        try:
            device, welcome = self._offer.place(introduction)
        except DevitError as err:
            self._tell(f"{address}: {name} is declined: {err}")
            await line.send(Declined(str(err)[:1024]))
            return
        self._tell(f"{address}: {name} has the code, and becomes submodel {device.submodel}", Priority.NOTICE)
        await line.send(welcome)
        while True:
            message = await line.receive()
            if isinstance(message, Ask):
                await self._answer(line, message)
            elif isinstance(message, Finish):
                break
            else:
                raise WireError("order", "expected a question for a file, found another message")
        try:
            self._offer.enrol(device)
        except DevitError as err:
            with suppress(OSError):
                await line.send(Declined(str(err)[:1024]))
            self._joined.set_exception(err)
            return
        self._joined.set_result(Joined(device, address))  # before it is told: it is in the fleet from now on
        with suppress(OSError):
            await line.send(Added())

    async def _answer(self, line: _Sealed, ask: Ask) -> None:
        file = self._offer.find(ask)
        await line.send(Content(None if file is None else file.size_bytes))
        if file is None:
            return
        try:
            for chunk in file.chunks():
                await line.send_bytes(chunk)
        except InputError as err:
            raise WireError("body", str(err)) from err  # half a file was sent: only the end of the link can tell

    def _tell(self, text: str, priority: Priority = Priority.WARNING) -> None:
        self._log.log(priority, text)


class _Line:
    """Frames on one connection, which is cut where its other end keeps silent, or takes nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.told = ""
        """Why it was cut, or that the other side has ended it; else empty."""

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cut the connection unless the block ends in time.

        Not ``asyncio.wait_for``: until Python 3.12 it runs a task of its own, which may fail unseen while all ends.
        """
        timer = asyncio.get_running_loop().call_later(seconds, self._cut)
        try:
            yield
        finally:
            timer.cancel()

    async def receive(self, kind: Kind) -> bytes:
        with self.within(SILENCE_S):
            try:
                header = await self._reader.readexactly(HEADER.size)
                _, size_bytes = read_header(header, kind, most_bytes=MAX_ASK_BYTES)
                return await self._reader.readexactly(size_bytes)
            except EOFError:
                self.told = self.told or "the other side has ended it"
                raise

    async def send(self, data: bytes) -> None:
        with self.within(SILENCE_S):
            self._writer.write(data)
            await self._writer.drain()

    async def close(self) -> None:
        """Close the connection when what was written has gone."""
        self._writer.close()
        with self.within(SILENCE_S), suppress(OSError):
            await self._writer.wait_closed()

    def _cut(self) -> None:
        self.told = "it was silent for too long"
        self._writer.transport.abort()


class _Sealed:
    """Messages on a line whose other end has proved the code."""

    def __init__(self, line: _Line, channel: Channel) -> None:
        self._line, self._channel = line, channel

    async def receive(self) -> Message:
        return decode(self._channel.open(await self._line.receive(Kind.SEALED)))

    async def send(self, message: Message) -> None:
        await self.send_bytes(encode(message))

    async def send_bytes(self, content: bytes) -> None:
        await self._line.send(self._channel.seal(content))


def _address(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if peer else "a peer that has gone"
