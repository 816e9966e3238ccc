"""Who gets in and what gets through, tried with real sockets; each test is one trap of ZeroMQ."""

from __future__ import annotations

import ctypes
import dataclasses
import select
import socket as plain_socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import zmq

from devit_contract.artefacts.keys import KeyPair
from devit_contract.errors import AddressError
from devit_contract.wire.codec import MAX_DEVICE_MESSAGE_BYTES
from devit_contract.wire.sockets import (
    CLIENTS,
    DEVICES,
    HANDSHAKE_FAILURES,
    Authenticator,
    Connection,
    Context,
    Monitor,
    Socket,
    bind_router,
    connect_dealer,
    open_context,
    user_id,
)

DEADLINE_S = 20.0
QUIET_S = 0.5
"""How long nothing must arrive before it counts as refused."""
ANY_END = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


def new_pair() -> KeyPair:
    return KeyPair(*zmq.curve_keypair())


def readable(descriptor: int, duration_s: float = DEADLINE_S) -> bool:
    """Wait until a descriptor is readable; tell whether it was in time."""
    return bool(select.select([descriptor], [], [], duration_s)[0])


@dataclass
class Port:
    """A router with keys, its gatekeeper, and what has come in."""

    context: Context
    keys: KeyPair
    allowed: dict[bytes, dict[bytes, str]]
    gate: Authenticator | None
    router: Socket
    endpoint: str
    monitor: Monitor
    delivered: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    """Routing id, name by key, content."""

    def pump(self, is_done: Callable[[], bool], duration_s: float = DEADLINE_S) -> bool:
        """Serve until something holds; tell whether it did in time."""
        poller = zmq.Poller()
        poller.register(self.router, zmq.POLLIN)
        if self.gate is not None:
            poller.register(self.gate.descriptor, zmq.POLLIN)
        end_s = time.monotonic() + duration_s
        while not is_done():
            if time.monotonic() >= end_s:
                return False
            poller.poll(5)
            if self.gate is not None:
                self.gate.answer()
            while self.router.poll(0):
                route, content = self.router.recv_multipart(copy=False)
                self.delivered.append((route.bytes.decode("latin1"), user_id(content), content.bytes))
        return True

    def delivers(self, sender: Socket, content: bytes, duration_s: float = DEADLINE_S) -> bool:
        """Try to send until the message has come in; tell whether it did in time."""
        is_sent = False

        def is_done() -> bool:
            nonlocal is_sent
            if not is_sent:
                try:
                    sender.send(content, zmq.NOBLOCK)
                    is_sent = True
                except zmq.Again:
                    pass
            return any(delivered == content for _, _, delivered in self.delivered)

        return self.pump(is_done, duration_s)


@dataclass
class Peers:
    """Devices, in a context of their own: libzmq asks a gatekeeper only in the context that it lives in."""

    context: Context
    kept: list[tuple[Socket, Monitor]] = field(default_factory=list)

    def dealer(
        self,
        port: Port,
        keys: KeyPair | None,
        *,
        name: bytes = b"jetson1",
        node_key: bytes | None = None,
        events: int = ANY_END,
    ) -> tuple[Socket, Monitor]:
        pair = connect_dealer(
            self.context,
            port.endpoint,
            name=name,
            keys=keys,
            node_key=node_key or port.keys.public,
            max_bytes=1 << 20,
            events=events,
        )
        self.kept.append(pair)
        return pair


@pytest.fixture
def context() -> Iterator[Context]:
    with open_context() as opened:
        yield opened


@pytest.fixture
def peers() -> Iterator[Peers]:
    with open_context() as opened:
        yield Peers(opened)


@pytest.fixture
def port(context: Context) -> Port:
    keys, allowed = new_pair(), {DEVICES: dict[bytes, str](), CLIENTS: dict[bytes, str]()}
    gate = Authenticator(context, allowed)
    return Port(context, keys, allowed, gate, *bind_router(context, "tcp://127.0.0.1:0", DEVICES, keys))


@pytest.fixture
def unguarded(context: Context) -> Port:
    """A port with keys that nobody checks."""
    keys = new_pair()
    return Port(context, keys, {}, None, *bind_router(context, "tcp://127.0.0.1:0", DEVICES, keys))


@pytest.fixture
def plain(context: Context) -> Port:
    """A port without keys."""
    return Port(context, new_pair(), {}, None, *bind_router(context, "tcp://127.0.0.1:0", DEVICES, None))


def test_a_known_key_is_let_in_under_its_name(peers: Peers, port: Port) -> None:
    pair = new_pair()
    port.allowed[DEVICES][pair.public] = "jetson1"
    sender, _ = peers.dealer(port, pair)
    assert port.delivers(sender, b"hello")
    assert port.delivered == [("jetson1", "jetson1", b"hello")]


def test_the_name_by_key_stays_whatever_name_a_peer_gives_itself(peers: Peers, port: Port) -> None:
    """The handshake cannot compare them, so the receiver has both to compare."""
    pair = new_pair()
    port.allowed[DEVICES][pair.public] = "jetson1"
    sender, _ = peers.dealer(port, pair, name=b"jetson2")
    assert port.delivers(sender, b"hello")
    assert port.delivered == [("jetson2", "jetson1", b"hello")]


def test_an_unknown_key_is_refused_and_let_in_once_it_is_allowed_without_a_new_socket(peers: Peers, port: Port) -> None:
    """Answered with 400 instead of 300 it would never try again."""
    pair = new_pair()
    sender, _ = peers.dealer(port, pair)
    assert not port.delivers(sender, b"too early", QUIET_S)
    assert port.gate is not None
    assert port.pump(lambda: port.gate is not None and port.gate.refused >= 2)
    assert port.delivered == []
    port.allowed[DEVICES][pair.public] = "jetson1"
    assert port.delivers(sender, b"hello")
    assert [content for _, _, content in port.delivered] == [b"hello"]


def test_a_key_of_the_other_port_is_refused(peers: Peers, port: Port) -> None:
    """A client's key must not open the devices' port; the client is told that it is at the wrong one."""
    pair = new_pair()
    port.allowed[CLIENTS][pair.public] = "desk"
    sender, monitor = peers.dealer(port, pair, events=HANDSHAKE_FAILURES)
    assert not port.delivers(sender, b"hello", QUIET_S)
    assert port.delivered == []
    assert [event.is_wrong_port for event in monitor.read()] == [True]


def test_a_key_that_is_not_known_is_not_told_of_another_port(peers: Peers, port: Port) -> None:
    sender, monitor = peers.dealer(port, new_pair(), events=HANDSHAKE_FAILURES)
    assert not port.delivers(sender, b"hello", QUIET_S)
    assert not any(event.is_wrong_port for event in monitor.read())


def test_a_peer_without_keys_delivers_nothing_to_a_port_with_keys(peers: Peers, port: Port) -> None:
    sender, monitor = peers.dealer(port, None)
    sender.setsockopt(zmq.IMMEDIATE, 0)  # let it queue before any handshake, as a hostile peer would
    assert not port.delivers(sender, b"hello", QUIET_S)
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in [event.kind for event in monitor.read()]


def test_a_peer_that_expects_another_node_delivers_nothing(peers: Peers, port: Port) -> None:
    pair = new_pair()
    port.allowed[DEVICES][pair.public] = "jetson1"
    sender, monitor = peers.dealer(port, pair, node_key=new_pair().public)
    assert not port.delivers(sender, b"secret", QUIET_S)
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in [event.kind for event in monitor.read()]


def test_nobody_gets_in_where_no_gatekeeper_answers(peers: Peers, unguarded: Port) -> None:
    """Without an enforced domain a CURVE server lets any key in."""
    sender, _ = peers.dealer(unguarded, new_pair())
    assert not unguarded.delivers(sender, b"hello", QUIET_S)


def test_without_keys_messages_come_without_a_name(peers: Peers, plain: Port) -> None:
    sender, _ = peers.dealer(plain, None)
    assert plain.delivers(sender, b"hello")
    assert plain.delivered == [("jetson1", None, b"hello")]


def test_nobody_can_tell_which_routing_id_is_drawn_next() -> None:
    """Libzmq seeds with the time and the process id; whoever guessed the next one could abort the process."""
    routes, kept = set(), []
    with open_context() as context:
        for _ in range(3):
            ctypes.CDLL(None).srand(1)
            router, endpoint, _ = bind_router(context, "tcp://127.0.0.1:0", DEVICES, None)
            sender, monitor = connect_dealer(
                context, endpoint, keys=None, node_key=None, max_bytes=1 << 20, events=zmq.EVENT_DISCONNECTED
            )
            kept += [router, sender, monitor.socket]
            sender.send(b"hello")
            assert router.poll(int(DEADLINE_S * 1000))
            routes.add(router.recv_multipart()[0])
    assert len(routes) == 3


def test_an_oversize_message_is_not_delivered_and_its_sender_cut_off(peers: Peers, port: Port) -> None:
    pair = new_pair()
    port.allowed[DEVICES][pair.public] = "jetson1"
    sender, monitor = peers.dealer(port, pair)
    assert port.delivers(sender, bytes(MAX_DEVICE_MESSAGE_BYTES))
    assert not port.delivers(sender, bytes(MAX_DEVICE_MESSAGE_BYTES + 1000), QUIET_S)
    assert zmq.EVENT_DISCONNECTED in [event.kind for event in monitor.read()]
    assert port.delivers(sender, b"small again")


def test_the_first_handshake_is_never_missed(peers: Peers, plain: Port) -> None:
    """An agent introduces itself on this event: one that its monitor missed would leave it mute for ever."""
    for number in range(60):
        socket, monitor = peers.dealer(plain, None, name=b"jetson%d" % number)
        assert readable(monitor.descriptor)
        assert [event.kind for event in monitor.read()] == [zmq.EVENT_HANDSHAKE_SUCCEEDED]
        socket.disable_monitor()
        socket.close()


def test_a_ports_monitor_tells_of_every_connection_from_the_first_on(plain: Port) -> None:
    """Its descriptor wakes once for all that has come since it was read in vain: an event it slept through is lost."""
    monitor = plain.monitor
    host, _, number = plain.endpoint.removeprefix("tcp://").rpartition(":")
    for _ in range(60):
        with plain_socket.create_connection((host, int(number))):
            assert readable(monitor.descriptor)
            assert [event.kind for event in monitor.read()] == [zmq.EVENT_ACCEPTED]
        assert readable(monitor.descriptor)
        assert [event.kind for event in monitor.read()] == [zmq.EVENT_DISCONNECTED]
    assert not readable(monitor.descriptor, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_taken_port_is_one_line_with_the_cure(context: Context, host: str) -> None:
    try:
        router, endpoint, _ = bind_router(context, f"tcp://{host}:0", DEVICES, None)
    except AddressError:
        pytest.skip(f"this machine has no address {host}")
    assert endpoint.startswith(f"tcp://{host}:")
    assert not endpoint.endswith(":0")
    with pytest.raises(AddressError, match="Address already in use: stop what listens there") as error:
        bind_router(context, endpoint, DEVICES, None)
    assert str(error.value).startswith(endpoint)
    router.close()
    assert "\n" not in str(error.value)


def test_an_address_of_another_machine_cannot_be_bound(context: Context) -> None:
    with pytest.raises(AddressError, match=r"192\.0\.2\.1:0: expected a free address of this machine"):
        bind_router(context, "tcp://192.0.2.1:0", DEVICES, None)


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f", b""]
)
def test_noise_on_the_port_hinders_nobody(peers: Peers, port: Port, noise: bytes) -> None:
    host, number = port.endpoint.removeprefix("tcp://").split(":")
    with plain_socket.create_connection((host, int(number)), timeout=DEADLINE_S) as stranger:
        stranger.sendall(noise)
        pair = new_pair()
        port.allowed[DEVICES][pair.public] = "jetson1"
        sender, _ = peers.dealer(port, pair)
        assert port.delivers(sender, b"hello")
    assert [content for _, _, content in port.delivered] == [b"hello"]


def test_one_connection_is_cut_and_its_peer_comes_back_while_the_others_stay(peers: Peers, plain: Port) -> None:
    senders = [peers.dealer(plain, None, name=b"jetson%d" % number) for number in (1, 2)]
    connections = []
    for sender, _ in senders:
        sender.send(b"hello")
        assert plain.router.poll(int(DEADLINE_S * 1000))
        connections.append(Connection.of(plain.router.recv_multipart(copy=False)[1]))
    first, second = connections
    assert first is not None
    assert second is not None
    dataclasses.replace(first, peer=second.peer).cut()  # the descriptor was given to another connection meanwhile
    assert plain.delivers(senders[0][0], b"still there")
    first.cut()
    assert plain.delivers(senders[1][0], b"not cut")
    events: list[int] = []

    def is_back() -> bool:
        events.extend(event.kind for event in senders[0][1].read())
        return events == [zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED]

    assert plain.pump(is_back)
    assert plain.delivers(senders[0][0], b"back again")
    assert [event.kind for event in senders[1][1].read()] == [zmq.EVENT_HANDSHAKE_SUCCEEDED]
    first.cut()  # long gone
