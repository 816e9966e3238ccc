"""Links to nodes that cannot be reached, or not by the first address of their name."""

from __future__ import annotations

import socket as tcp
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from devit_contract.errors import NoAnswerError
from devit_contract.wire import reach
from devit_contract.wire.client import Client
from devit_contract.wire.reach import Reach
from devit_contract.wire.sockets import CLIENTS, NO_LINK, Monitor, bind_router, connect_dealer, open_context

DEADLINE_S = 20.0
SOON_S = 3.0


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nothing listens on, and nothing else takes."""
    with tcp.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def watched(endpoint: str) -> Iterator[tuple[Reach, Monitor]]:
    with open_context() as context:
        socket, monitor = connect_dealer(
            context, endpoint, name=None, keys=None, node_key=None, max_bytes=1000, events=NO_LINK
        )
        yield Reach(socket, endpoint), monitor


def tended(watch: Reach, monitor: Monitor, duration_s: float, until: int) -> list[tuple[float, str]]:
    """Tend a link for a time, or until that many lines are told; the lines, and after how many seconds each came."""
    told: list[tuple[float, str]] = []
    start_s = time.monotonic()
    while len(told) < until and (now_s := time.monotonic()) - start_s < duration_s:
        monitor.socket.poll(max(0, min(100, int((watch.next_s - now_s) * 1000))))
        for _ in monitor.read():
            watch.failed()
        if line := watch.tend():
            told.append((time.monotonic() - start_s, line))
    return told


def test_a_closed_port_is_told_once_in_time_with_the_reason(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"tcp://127.0.0.1:{closed_port}"
    with watched(endpoint) as (watch, monitor):
        told = tended(watch, monitor, SOON_S, until=2)
        assert [text for _, text in told] == [
            f"{endpoint}: no link to the node, connection refused: check that fusion-node runs there; trying again"
        ]
        monkeypatch.setattr(reach, "_TELL_AGAIN_S", 0.0)
        watch._tell_s = 0.0
        assert len(tended(watch, monitor, DEADLINE_S, until=2)) == 2


def test_a_name_that_nobody_knows_is_told() -> None:
    with watched("tcp://node.invalid:7711") as (watch, monitor):
        ((_, text),) = tended(watch, monitor, DEADLINE_S, until=1)
    assert "its name is not known (" in text


def test_a_resolver_that_does_not_answer_is_told_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(reach.tcp, "getaddrinfo", lambda *_, **__: answers.wait(DEADLINE_S) and [])
    with watched("tcp://node.invalid:7711") as (watch, monitor):
        ((told_s, text),) = tended(watch, monitor, DEADLINE_S, until=1)
        answers.set()
    assert "its name is still being looked up" in text
    assert told_s < SOON_S


@pytest.mark.parametrize("first", ["::1", "127.0.0.1"])
def test_a_name_leads_to_whichever_of_its_addresses_answers(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libzmq asks its own resolver, which does not know this name."""

    def both(_host: str, port: int, **_: object) -> list[Any]:
        six = (tcp.AF_INET6, tcp.SOCK_STREAM, 0, "", ("::1", port, 0, 0))
        four = (tcp.AF_INET, tcp.SOCK_STREAM, 0, "", ("127.0.0.1", port))
        return [six, four] if first == "::1" else [four, six]

    monkeypatch.setattr(reach.tcp, "getaddrinfo", both)
    told: list[str] = []
    with open_context() as context:
        router, endpoint, _ = bind_router(context, "tcp://127.0.0.1:0", CLIENTS, None)
        port = endpoint.rsplit(":", 1)[1]
        with Client(f"tcp://node.invalid:{port}", timeout_s=DEADLINE_S, tell=told.append) as client:
            client.submit(None)
            client.wait(0.01)
            end_s = time.monotonic() + DEADLINE_S
            while not (router.poll(10) and client.links) and time.monotonic() < end_s:
                client.wait(0.01)
            assert router.poll(0)
            assert client.links == 1
    assert told == []


def test_an_address_keeps_its_zone() -> None:
    """Without it, nobody could connect to a link-local address."""
    (number, name), *_ = tcp.if_nameindex()
    assert reach._numeric_endpoint(("fe80::1", 7711, 0, number)) == f"tcp://[fe80::1%{name}]:7711"
    assert reach._numeric_endpoint(("::1", 7711, 0, 0)) == "tcp://[::1]:7711"
    assert reach._numeric_endpoint(("127.0.0.1", 7711)) == "tcp://127.0.0.1:7711"


def test_a_question_without_an_answer_says_why(closed_port: int) -> None:
    told: list[str] = []
    with (
        Client(f"tcp://127.0.0.1:{closed_port}", timeout_s=3.0, tell=told.append) as client,
        pytest.raises(NoAnswerError, match=r"no answer within 3 s \(connection refused\): check that fusion-node runs"),
    ):
        client.status()
    assert len(told) == 1


def test_what_takes_connections_but_is_no_node_is_told() -> None:
    with tcp.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with (
            Client(endpoint, timeout_s=1.5) as client,
            pytest.raises(NoAnswerError, match=r"\(it takes connections, but does not answer as a node\)"),
        ):
            client.status()
