"""The node's side of pairing, over real connections: who is refused, when, and what is logged."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests.fusion.pairing.hosted import CODE, WRONG, Hosted, Joiner, hosted, write_fleet
from tests.support.cell import TINY
from tests.support.properties import examples

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.keys import KeyPair, new_keys
from devit_contract.errors import InputError, NoAnswerError
from devit_contract.wire.pairing import (
    MAX_ASK_BYTES,
    Added,
    Ask,
    Content,
    Declined,
    Finish,
    Kind,
    Refusal,
    Welcome,
    frame,
    read_refusal,
)
from devit_fusion.pairing.host import MAX_CONNECTIONS
from devit_fusion.pairing.offer import Offer
from devit_fusion.pairing.tries import Tries


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    return write_fleet(tmp_path)


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return new_keys(tmp_path / "device", "jetson2")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def join(running: Hosted, keys: KeyPair) -> None:
    """Join as a good device does, but for the files."""
    with Joiner(running.port) as joiner:
        assert joiner.greet() is Kind.HELLO
        joiner.prove("jetson2", keys)
        welcome = joiner.opened()
        assert isinstance(welcome, Welcome)
        joiner.send(Finish())
        assert joiner.opened() == Added()


def try_wrong(running: Hosted, keys: KeyPair) -> tuple[Refusal, int]:
    """Try a wrong code; give why the host refuses."""
    with Joiner(running.port, WRONG) as joiner:
        kind = joiner.greet()
        if kind is Kind.REFUSAL:
            raise AssertionError("refused before the code")
        joiner.prove("jetson2", keys)
        kind, body = joiner.receive()
        assert kind is Kind.REFUSAL
        assert joiner.is_cut()
        return read_refusal(body)


def first_refusal(running: Hosted) -> tuple[Refusal, int]:
    """Say hello with the right code, and give why the host does not look at it."""
    with Joiner(running.port) as joiner:
        joiner.link.sendall(joiner._handshake.hello)
        kind, body = joiner.receive()
        assert kind is Kind.REFUSAL
        return read_refusal(body)


def test_one_device_joins_and_the_port_is_closed(fleet: Path, keys: KeyPair) -> None:
    with hosted(Offer(fleet, TINY)) as running:
        join(running, keys)
        running.wait()
        assert running.joined is not None
        assert (running.joined.device.name, running.joined.device.submodel) == ("jetson2", 1)
        with pytest.raises(ConnectionRefusedError):
            Joiner(running.port)
    assert load_fleet(fleet).find_device("jetson2").public_key == keys.public.decode()
    assert not any(CODE in line or CODE.replace("-", "") in line for line in running.log.lines)


def test_three_wrong_codes_are_followed_by_a_pause_that_grows_and_then_the_right_one_is_taken(
    fleet: Path, keys: KeyPair
) -> None:
    clock = Clock()
    with hosted(Offer(fleet, TINY), tries=Tries(clock)) as running:
        for pause_s in (30, 60):
            for _ in range(3):
                assert try_wrong(running, keys)[0] is Refusal.WRONG_CODE
            assert first_refusal(running) == (Refusal.PAUSED, pause_s)
            clock.now_s += pause_s - 1
            assert first_refusal(running) == (Refusal.PAUSED, 1)
            clock.now_s += 1
        join(running, keys)
        running.wait()
    assert [line.partition("refused: ")[2] for line in running.log.lines[:4]] == [
        "wrong code, number 1",
        "wrong code, number 2",
        "wrong code, number 3: no code is looked at for 30 s",
        "no code is looked at for 30 s more",
    ]


def test_connections_side_by_side_are_no_more_tries(fleet: Path, keys: KeyPair) -> None:
    tries = Tries(Clock())
    with hosted(Offer(fleet, TINY), tries=tries) as running:
        joiners = [Joiner(running.port, WRONG) for _ in range(8)]
        assert {joiner.greet() for joiner in joiners} == {Kind.HELLO}  # nobody is judged yet
        for joiner in joiners:
            joiner.prove("jetson2", keys)
        reasons = [read_refusal(joiner.receive()[1])[0] for joiner in joiners]
        for joiner in joiners:
            joiner.close()
    assert sorted(reasons) == [Refusal.WRONG_CODE] * 3 + [Refusal.PAUSED] * 5
    assert tries.failed == 3


def test_who_ends_before_its_code_is_judged_has_learnt_nothing_and_costs_no_try(fleet: Path) -> None:
    """The host proves the code second: it says nothing under the common key before."""
    tries = Tries(Clock())
    with hosted(Offer(fleet, TINY), tries=tries) as running:
        for _ in range(5):
            with Joiner(running.port, WRONG) as joiner:
                assert joiner.greet() is Kind.HELLO
    assert tries.failed == 0


def test_a_second_joiner_is_refused_while_one_is_served_and_may_come_when_that_one_has_gone(
    fleet: Path, keys: KeyPair, tmp_path: Path
) -> None:
    other = new_keys(tmp_path / "device", "jetson3")
    with hosted(Offer(fleet, TINY)) as running:
        with Joiner(running.port) as early, Joiner(running.port) as first:
            assert early.greet() is Kind.HELLO
            assert first.greet() is Kind.HELLO
            first.prove("jetson3", other)
            assert isinstance(first.opened(), Welcome)
            assert first_refusal(running) == (Refusal.BUSY, 0)
            early.prove("jetson2", keys)  # the code is right, but it comes second
            kind, body = early.receive()
            assert (kind, read_refusal(body)[0]) == (Kind.REFUSAL, Refusal.BUSY)
            first.send(Ask("bundle", "manifest.json"))
            assert isinstance(first.opened(), Content)
        while True:  # until the host has seen that the first one has gone
            with Joiner(running.port) as joiner:
                if joiner.greet() is Kind.HELLO:
                    break
        join(running, keys)
    assert sum("is joining already" in line for line in running.log.lines) >= 2
    assert [each.name for each in load_fleet(fleet).device] == ["jetson1", "jetson2"]


def test_a_device_that_is_declined_is_told_why_and_may_come_again_under_another_name(
    fleet: Path, keys: KeyPair
) -> None:
    with hosted(Offer(fleet, TINY)) as running:
        with Joiner(running.port) as joiner:
            joiner.greet()
            joiner.prove("jetson1", keys)
            declined = joiner.opened()
            assert isinstance(declined, Declined)
            assert declined.reason.startswith("jetson1: the fleet has that name with another key: join with --name")
            assert joiner.is_cut()
        join(running, keys)


def test_silent_and_slow_peers_are_cut_and_hold_nobody_up(fleet: Path, keys: KeyPair) -> None:
    with hosted(Offer(fleet, TINY), handshake_s=0.3) as running, Joiner(running.port) as silent:
        with Joiner(running.port) as slow, Joiner(running.port) as half:
            slow.link.sendall(b"\0\0")
            assert half.greet() is Kind.HELLO
            assert slow.is_cut()
            assert half.is_cut()
        assert silent.is_cut()
    with hosted(Offer(fleet, TINY)) as running, Joiner(running.port), Joiner(running.port) as slow:
        slow.link.sendall(b"\0\0")
        join(running, keys)


def test_more_connections_than_there_may_be_are_closed_unheard(fleet: Path, keys: KeyPair) -> None:
    with hosted(Offer(fleet, TINY)) as running:
        waiting = [Joiner(running.port) for _ in range(MAX_CONNECTIONS)]
        for joiner in waiting:
            assert joiner.greet() is Kind.HELLO
        with Joiner(running.port) as surplus:
            assert surplus.is_cut()
        for joiner in waiting:
            joiner.close()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!BI", Kind.HELLO, 0xFFFFFFFF),
        struct.pack("!BI", Kind.SEALED, 38) + bytes(38),
        struct.pack("!BI", Kind.HELLO, MAX_ASK_BYTES + 17),
        frame(Kind.HELLO, b"GET / HTTP/1.1\r\n"),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_bytes_that_are_no_hello_end_the_connection_at_once(fleet: Path, data: bytes) -> None:
    with hosted(Offer(fleet, TINY)) as running, Joiner(running.port) as joiner:
        joiner.link.sendall(data)
        assert joiner.is_cut()
    assert len(running.log.lines) == 1


def test_a_joiner_of_another_version_is_told_so(fleet: Path) -> None:
    with hosted(Offer(fleet, TINY)) as running, Joiner(running.port) as joiner:
        joiner.link.sendall(frame(Kind.HELLO, b"DVPR\x02" + bytes(33)))
        assert read_refusal(joiner.receive()[1]) == (Refusal.VERSION, 0)


@examples(1, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    st.lists(
        st.binary(max_size=200)
        | st.tuples(st.sampled_from(Kind), st.binary(max_size=200)).map(lambda each: frame(*each))
        | st.binary(min_size=33, max_size=33).map(lambda message: frame(Kind.HELLO, b"DVPR\x01" + message)),
        max_size=4,
    ),
    st.booleans(),
)
def test_no_bytes_of_a_stranger_or_of_a_guest_do_more_than_end_its_connection(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], has_code: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    fleet, keys = write_fleet(folder), new_keys(folder / "device", "jetson2")
    with hosted(Offer(fleet, TINY)) as running:
        with Joiner(running.port) as joiner, suppress(OSError):
            if has_code:
                joiner.greet()
                assert joiner.channel is not None
                joiner.prove("jetson2", keys)
                joiner.opened()
                parts = [joiner.channel.seal(part) for part in parts]
            for part in parts:
                joiner.link.sendall(part)
        while True:
            with Joiner(running.port) as joiner:
                if joiner.greet() is Kind.HELLO:
                    break
        join(running, keys)
        running.wait()
        assert running.joined is not None


def test_nobody_in_time_and_a_fleet_file_that_has_lost_its_place_end_it_with_a_line(fleet: Path, keys: KeyPair) -> None:
    with hosted(Offer(fleet, TINY), timeout_s=0.1) as running:
        running.wait()
        assert isinstance(running.error, NoAnswerError)
        assert str(running.error) == "no device has joined in 0.1 s: run devit pair again"
    with hosted(Offer(fleet, TINY)) as running, Joiner(running.port) as joiner:
        joiner.greet()
        joiner.prove("jetson2", keys)
        joiner.opened()
        fleet.unlink()
        joiner.send(Finish())
        assert isinstance(joiner.opened(), Declined)
        running.wait()
        assert isinstance(running.error, InputError)


def test_who_is_served_when_the_time_is_over_may_finish(fleet: Path, keys: KeyPair) -> None:
    with hosted(Offer(fleet, TINY), timeout_s=0.5) as running, Joiner(running.port) as joiner:
        joiner.greet()
        joiner.prove("jetson2", keys)
        joiner.opened()
        while True:  # until the time is over and nobody else is let in
            try:
                Joiner(running.port).close()
            except ConnectionRefusedError:
                break
        joiner.send(Finish())
        assert joiner.opened() == Added()
        running.wait()
        assert running.joined is not None
