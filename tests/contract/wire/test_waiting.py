"""A loop's wait: it sleeps while nothing has come, and never over a message."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import zmq

from devit_contract.wire.sockets import Socket, open_context
from devit_contract.wire.waiting import Waiter

LONG_MS = 20_000
"""A wait that ends by itself fails its test, as it finds nothing."""


class Pair(NamedTuple):
    router: Socket
    dealer: Socket
    route: bytes
    waiter: Waiter
    descriptor: int
    """Of the dealer."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Connect a dealer, which a waiter watches, to a router."""
    with open_context() as context:
        router, dealer, waiter = context.socket(zmq.ROUTER), context.socket(zmq.DEALER), Waiter()
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"here")
        route, _ = router.recv_multipart()
        descriptor = waiter.add_socket(dealer)
        assert waiter.wait(0) == []  # only once it has been found empty does its descriptor tell of messages
        yield Pair(router, dealer, route, waiter, descriptor)


def test_a_message_ends_the_wait_and_none_does_not(pair: Pair) -> None:
    pair.router.send_multipart([pair.route, b"one"])
    assert pair.waiter.wait(LONG_MS) == [pair.descriptor]
    assert pair.dealer.recv(zmq.NOBLOCK) == b"one"
    assert pair.waiter.wait(0) == []


def test_a_message_whose_signal_was_taken_is_not_slept_over(pair: Pair) -> None:
    """A reader is woken once, and whatever is done with the socket may take that for seen, e.g. a send."""
    pair.router.send_multipart([pair.route, b"one"])
    assert select.select([pair.descriptor], [], [], LONG_MS / 1000)[0]
    assert pair.dealer.getsockopt(zmq.EVENTS)
    assert select.select([pair.descriptor], [], [], 0)[0] == []
    assert pair.waiter.wait(LONG_MS) == [pair.descriptor]
    assert pair.dealer.recv(zmq.NOBLOCK) == b"one"


def test_what_a_reader_leaves_is_told_again(pair: Pair) -> None:
    for text in (b"one", b"two"):
        pair.router.send_multipart([pair.route, text])
    for text in (b"one", b"two"):
        assert pair.waiter.wait(LONG_MS) == [pair.descriptor]
        assert pair.dealer.recv(zmq.NOBLOCK) == text


def test_a_descriptor_is_told_beside_a_socket_with_messages_and_no_more_once_removed(pair: Pair) -> None:
    """Messages that always come keep nobody else waiting."""
    reader, writer = os.pipe()
    try:
        pair.waiter.add(reader)
        os.write(writer, b".")
        pair.router.send_multipart([pair.route, b"one"])
        assert select.select([pair.descriptor], [], [], LONG_MS / 1000)[0]
        assert sorted(pair.waiter.wait(LONG_MS)) == sorted((pair.descriptor, reader))
        pair.waiter.remove(reader)
        assert pair.waiter.wait(LONG_MS) == [pair.descriptor]
    finally:
        os.close(reader)
        os.close(writer)


def test_a_wait_for_room_ends_when_there_is_a_link() -> None:
    with open_context() as context:
        router, dealer, waiter = context.socket(zmq.ROUTER), context.socket(zmq.DEALER), Waiter()
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # as all of this project: no room before there is a link
        descriptor = waiter.add_socket(dealer)
        waiter.room_for = dealer
        assert waiter.wait(0) == []
        dealer.connect(f"tcp://127.0.0.1:{port}")
        assert waiter.wait(LONG_MS) == [descriptor]
        dealer.send(b"now", zmq.NOBLOCK)
        waiter.room_for = None
        assert waiter.wait(0) == []
