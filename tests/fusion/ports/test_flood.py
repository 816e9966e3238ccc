"""Messages that never end, on real sockets: who is cut off, and who must not be."""

from __future__ import annotations

import socket as tcp
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
import zmq
from tests.network.zmtp_peer import ZmtpPeer

from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES
from devit_contract.wire.sockets import (
    CLIENTS,
    DEVICES,
    Context,
    Socket,
    bind_router,
    connect_dealer,
    open_context,
    receive_routed,
)
from devit_fusion.ports.flood import CHECK_NS, FloodGuard, _bytes_received

DEADLINE_S = 30.0
MIB = 1 << 20


class GuardedPort:
    """A router with a guard, and the loop of a node around them."""

    def __init__(self, context: Context, *, limit_bytes: int, is_client_port: bool = False) -> None:
        domain = CLIENTS if is_client_port else DEVICES
        self.router, self.endpoint, self._monitor = bind_router(context, "tcp://127.0.0.1:0", domain, None)
        self.guard = FloodGuard(limit_bytes)
        self.delivered: Counter[bytes] = Counter()
        """Messages by routing id."""
        self.descriptors: list[int] = []
        """Every one accepted, in order."""
        self.ends, self.silent_ends = 0, 0
        """Connections that ended, and those among them that had never delivered a message."""
        self._context = context
        self._kept: list[object] = []
        self._poller = zmq.Poller()
        self._poller.register(self.router, zmq.POLLIN)
        self._poller.register(self._monitor.descriptor, zmq.POLLIN)

    def dealer(self, name: bytes) -> Socket:
        """Connect an honest peer."""
        pair = connect_dealer(
            self._context,
            self.endpoint,
            name=name,
            keys=None,
            node_key=None,
            max_bytes=MIB,
            events=zmq.EVENT_HANDSHAKE_SUCCEEDED,
        )
        self._kept.append(pair)
        pair[0].setsockopt(zmq.SNDTIMEO, round(DEADLINE_S * 1000))
        return pair[0]

    def read_monitor(self) -> None:
        for event in self._monitor.read():
            if event.kind == zmq.EVENT_ACCEPTED:
                self.descriptors.append(event.value)
                self.guard.accepted(event.value, time.monotonic_ns())
            else:
                self.silent_ends += self.guard.ended(event.value)
                self.ends += 1

    def run(self, is_done: Callable[[], bool], duration_s: float = DEADLINE_S) -> bool:
        """Serve until something holds; tell whether it did in time."""
        end_s = time.monotonic() + duration_s
        while not is_done():
            if time.monotonic() >= end_s:
                return False
            self._poller.poll(5)
            self.read_monitor()
            for _ in range(64):
                with suppress(zmq.Again):
                    route, frame, _ = receive_routed(self.router)
                    self.delivered[route] += 1
                    self.guard.delivered(frame)
                    continue
                break
            self.guard.check(time.monotonic_ns())
        return True


def send_all(peer: ZmtpPeer, message: bytes, count: int) -> None:
    for _ in range(count):
        peer.send(message)


@pytest.fixture
def context() -> Iterator[Context]:
    with open_context() as opened:
        yield opened


@pytest.fixture
def port(context: Context) -> GuardedPort:
    return GuardedPort(context, limit_bytes=MIB)


@pytest.fixture
def client_port(context: Context) -> GuardedPort:
    return GuardedPort(context, limit_bytes=MAX_IMAGE_MESSAGE_BYTES + MIB, is_client_port=True)


def test_a_message_that_never_ends_is_cut_off_and_its_sender_alone(port: GuardedPort) -> None:
    good = port.dealer(b"good")
    good.send(b"before")
    with ThreadPoolExecutor(1) as pool, ZmtpPeer(port.endpoint, b"bad") as bad:
        bad.send(b"a whole one first")
        assert port.run(lambda: port.delivered[b"good"] == port.delivered[b"bad"] == 1)
        flood = pool.submit(bad.flood, 60_000, 256 * MIB)
        assert port.run(flood.done)
    assert flood.result() < 256 * MIB
    good.send(b"after")
    assert port.run(lambda: port.delivered[b"good"] == 2)
    assert (port.guard.cut, len(port.descriptors)) == (1, 2)  # the good one never had to connect again
    assert port.delivered[b"bad"] == 1


def test_a_slow_flood_is_cut_off_at_the_limit(port: GuardedPort) -> None:
    """Part by part, so that what the node has received is what was sent."""
    with ZmtpPeer(port.endpoint, b"bad") as bad:
        assert port.run(lambda: len(port.descriptors) == 1)
        for sent_bytes in range(0, MIB - 60_000, 60_000):
            bad.send(bytes(60_000), more=True)
            assert port.run(lambda least=sent_bytes: _bytes_received(port.descriptors[0]) > least)  # type: ignore[misc]
        assert port.guard.cut == 0
        bad.send(bytes(60_000), more=True)
        bad.send(bytes(60_000), more=True)
        assert port.run(lambda: port.guard.cut == 1)
        assert bad.is_shut(DEADLINE_S)


def test_the_largest_messages_one_after_another_are_no_flood(client_port: GuardedPort) -> None:
    port = client_port
    picture = bytes(MAX_IMAGE_MESSAGE_BYTES)
    with ThreadPoolExecutor(1) as pool, ZmtpPeer(port.endpoint, b"client") as client:
        sending = pool.submit(send_all, client, picture, 40)
        assert port.run(lambda: port.delivered[b"client"] == 40 or (sending.done() and port.guard.cut > 0))
    assert (port.delivered[b"client"], port.guard.cut) == (40, 0)


def test_messages_that_waited_while_the_node_was_held_up_are_no_flood(port: GuardedPort) -> None:
    """At the first look after the pause the limit is exceeded many times over, by messages that are whole."""
    with ThreadPoolExecutor(1) as pool, ZmtpPeer(port.endpoint, b"device") as device:
        assert port.run(lambda: len(port.descriptors) == 1)
        sending = pool.submit(send_all, device, bytes(60_000), 200)
        end_s = time.monotonic() + DEADLINE_S
        while _bytes_received(port.descriptors[0]) < 6 * MIB:
            assert time.monotonic() < end_s
            assert not sending.done() or sending.exception() is None
        port.guard.check(time.monotonic_ns())
        assert port.run(lambda: port.delivered[b"device"] == 200 or port.guard.cut > 0)
    assert port.guard.cut == 0


def test_heartbeats_of_a_connection_that_says_nothing_are_no_flood(port: GuardedPort) -> None:
    """They are never delivered, so a connection that is idle for days must be allowed them."""
    port.dealer(b"idle").send(b"only this")
    assert port.run(lambda: port.delivered[b"idle"] == 1 and len(port.descriptors) == 1)
    start_s, start_bytes = time.monotonic(), _bytes_received(port.descriptors[0])
    assert not port.run(lambda: False, duration_s=3)
    came = _bytes_received(port.descriptors[0]) - start_bytes
    assert 0 < came < 512 * (time.monotonic() - start_s)


def test_a_days_worth_of_heartbeats_is_allowed_in_a_day_and_not_in_a_second(port: GuardedPort) -> None:
    """As bytes they count alike; the parts stand for heartbeats."""
    with ZmtpPeer(port.endpoint, b"idle") as idle:
        assert port.run(lambda: len(port.descriptors) == 1)
        for _ in range(30):
            idle.send(bytes(60_000), more=True)
        end_s = time.monotonic() + DEADLINE_S
        while _bytes_received(port.descriptors[0]) < 1.7 * MIB:
            assert time.monotonic() < end_s
        tomorrow_ns = time.monotonic_ns() + 86_400 * 1_000_000_000
        guards = [FloodGuard(MIB), FloodGuard(MIB)]
        for guard, now_ns in zip(guards, (tomorrow_ns, time.monotonic_ns()), strict=True):
            guard.accepted(port.descriptors[0], time.monotonic_ns())
            end_s = time.monotonic() + 1
            while guard.cut == 0 and time.monotonic() < end_s:
                guard.check(now_ns)
        assert [guard.cut for guard in guards] == [0, 1]


def test_many_messages_that_are_unfinished_each_within_its_limit_are_bounded_together(port: GuardedPort) -> None:
    """One key may open any number of connections."""
    with ExitStack() as stack:
        peers = [stack.enter_context(ZmtpPeer(port.endpoint, b"bad%d" % number)) for number in range(30)]
        for peer in peers:
            for _ in range(15):
                peer.send(bytes(60_000), more=True)
        assert port.run(lambda: port.guard.cut >= 12)
        assert not port.run(lambda: port.guard.cut > 13, duration_s=0.3)  # 17 of 0.86 MiB and less stay
        port.run(lambda: sum(peer.is_shut(0.01) for peer in peers) == port.guard.cut)


def test_many_that_take_turns_at_being_the_greediest_are_bounded_together(port: GuardedPort) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(ZmtpPeer(port.endpoint, b"bad%d" % number)) for number in range(20)]
        for peer in peers:
            for _ in range(15):
                peer.send(bytes(60_000), more=True)
        guard = FloodGuard(MIB)
        end_s = time.monotonic() + DEADLINE_S
        while len(port.descriptors) < 20 or min(map(_bytes_received, port.descriptors)) < 900_000:
            assert time.monotonic() < end_s
            port.read_monitor()
        for descriptor in port.descriptors:
            guard.accepted(descriptor, time.monotonic_ns())
        for greediest in (0, 1):
            assert guard.cut == 0
            aim = max(map(_bytes_received, port.descriptors)) + 1
            while _bytes_received(port.descriptors[greediest]) < aim:
                assert time.monotonic() < end_s
                peers[greediest].send(bytes(3000), more=True)
            guard.check(time.monotonic_ns() + CHECK_NS + 20 * 100_000)
        assert guard.cut == 1


def test_a_descriptor_that_goes_to_the_next_connection_starts_anew(port: GuardedPort) -> None:
    for number in range(1, 6):
        with ZmtpPeer(port.endpoint, b"device%d" % number) as peer:
            for _ in range(15):
                peer.send(bytes(60_000), more=True)
            assert port.run(
                lambda count=number: (
                    len(port.descriptors) == count  # type: ignore[misc]
                    and _bytes_received(port.descriptors[-1]) > 890_000
                )
            )
    assert len(set(port.descriptors)) < 5
    assert port.guard.cut == 0


def test_connections_that_end_without_a_message_are_told_from_those_that_spoke(port: GuardedPort) -> None:
    """However short they are: one that has ended before it was looked at is told too."""
    host, number = port.endpoint.removeprefix("tcp://").split(":")
    for _ in range(20):
        tcp.create_connection((host, int(number)), DEADLINE_S).close()
        with tcp.create_connection((host, int(number)), DEADLINE_S) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    for name in range(5):
        with ZmtpPeer(port.endpoint, b"device%d" % name) as peer:
            peer.send(b"hello")
            assert port.run(lambda: port.delivered.total() == name + 1)  # noqa: B023 - called at once
    assert port.run(lambda: port.ends == 45)
    assert port.silent_ends == 40
