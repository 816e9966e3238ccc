"""Connections without a word, on a real port: how many stay, and whose."""

from __future__ import annotations

import select
import socket as tcp
import time
from contextlib import ExitStack

import zmq

from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.service.journal import Log
from devit_contract.wire.sockets import DEVICES, bind_router, open_context
from devit_fusion.events import Events
from devit_fusion.ports.peers import Peers

DEADLINE_S = 20.0


def test_the_oldest_strangers_of_the_address_with_most_are_shut_beyond_the_bound() -> None:
    events = Events(Log("fusion-node"))
    peers = Peers(events, served=2, refused=0, has_keys=True)
    with open_context() as context, ExitStack() as stack:
        _, endpoint, monitor = bind_router(context, "tcp://127.0.0.1:0", DEVICES, None)
        poller = zmq.Poller()
        poller.register(monitor.descriptor, zmq.POLLIN)

        def come(address: str) -> tcp.socket:
            """Connect, and let the port notice."""
            host, port = parse_endpoint(endpoint, "endpoint")
            opened = stack.enter_context(tcp.create_connection((host, port), DEADLINE_S, (address, 0)))
            end_s = time.monotonic() + DEADLINE_S
            while True:
                poller.poll(100)
                for event in monitor.read():
                    if event.kind == zmq.EVENT_ACCEPTED:
                        peers.accepted(event.value)
                        return opened
                    peers.ended(event.value)
                assert time.monotonic() < end_s

        honest = come("127.0.0.2")
        crowd = [come("127.0.0.1") for _ in range(140)]
        watch = select.poll()
        for connection in (honest, *crowd):
            watch.register(connection, select.POLLRDHUP)
        end_s = time.monotonic() + DEADLINE_S
        while len(shut := watch.poll(100)) < 13:
            assert time.monotonic() < end_s
        assert {descriptor for descriptor, _ in shut} == {connection.fileno() for connection in crowd[:13]}
    assert events.latest()[0].text == "128 connections of 127.0.0.1 say nothing: the oldest was shut"
