"""A cell of four devices and several nodes as processes of this machine, whose links can be cut."""

from __future__ import annotations

import json
import signal
import socket as tcp
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tests.network.proxy import Proxy

import devit_pipeline
from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.keys import new_keys
from devit_contract.errors import DevitError
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client
from devit_contract.wire.codec import Kind, Message, State
from devit_contract.wire.messages import AnswerBody, read_body
from devit_pipeline.local_cell import LocalCell, LocalDevice

BUNDLE = Path(devit_pipeline.__file__).parent / "fashion_mnist" / "bundle"
IMAGE = np.zeros((28, 28, 1), np.uint8)
FIRST, SECOND = "node", "standby1"
_START_S = 60.0


class Nodes(LocalCell):
    """Four agents and two nodes; a context manager. Where ``is_split``, :meth:`cut` can cut links."""

    def __init__(
        self, folder: Path, *, engine: str = "paced:2", deadline_ms: float = 50.0, is_split: bool = False
    ) -> None:
        devices = [LocalDevice(f"jetson{index + 1}", index, engine=engine) for index in range(4)]
        super().__init__(BUNDLE, folder, devices, deadline_ms=deadline_ms)
        self._ports = {name: (_free_port(), _free_port()) for name in (FIRST, SECOND)}
        self._is_split = is_split
        self._stack = ExitStack()
        self._far: dict[str, Proxy] = {}

    def __enter__(self) -> Nodes:
        try:
            self._keys = {
                name: new_keys(self.folder / "keys", name) for name in (*self._ports, "client", *self.devices)
            }
            if self._is_split:
                for name, (port, _) in self._ports.items():
                    proxy = Proxy(f"tcp://127.0.0.1:{port}", delay_ms=0.0, jitter_ms=0.0)
                    self._far[name] = self._stack.enter_context(proxy)
            self._write(self.fleet_path, {})
            for name in self._ports:
                self._write(self.folder / f"fleet-{name}.toml", {other: 1 for other in self._ports if other != name})
                self.start(name)
            for index, device in enumerate(self.devices.values()):
                self._write_agent_of(device, far={SECOND} if index >= 2 else {FIRST})
            self.start_agents(list(self.devices))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop everything, wherever it hangs."""
        for child in self._children.values():
            child.send_signal(signal.SIGCONT)
        super().close()
        self._stack.close()

    def start(self, name: str) -> None:
        """Start a node, or an agent, and wait until it is there."""
        if name in self.devices:
            self.start_agents([name])
            return
        files = [
            "--fleet",
            str(self.folder / f"fleet-{name}.toml"),
            "--key",
            str(self.folder / f"keys/{name}.key_secret"),
        ]
        self._start(name, "fusion_node", ["--bundle", str(self.bundle), *files])
        self._wait_ready(name, time.monotonic() + _START_S)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a node or an agent."""
        self._children[name].send_signal(number)

    def cut(self, *, is_cut: bool) -> None:
        """Cut the two nodes from each other, the first from jetson1 and 2, and the other one from jetson3 and 4."""
        for proxy in self._far.values():
            proxy.tell("hold" if is_cut else "go")

    def _endpoint(self, name: str, far: bool) -> str:
        return self._far[name].endpoint if far and self._far else f"tcp://127.0.0.1:{self._ports[name][0]}"

    def _write(self, path: Path, far: dict[str, int]) -> None:
        lines = ["schema = 2"]
        for name, (_, client_port) in self._ports.items():
            lines += ["[node]" if name == FIRST else "[[standby]]", f'endpoint = "{self._endpoint(name, name in far)}"']
            lines += [f'client_endpoint = "tcp://127.0.0.1:{client_port}"', f'public_key = "{self._public(name)}"']
        lines += ["[serving]", self._serving]
        for device in self.devices.values():
            lines += ["[[device]]", f'name = "{device.name}"', f"submodel = {device.submodel}"]
            lines += [f'public_key = "{self._public(device.name)}"']
        lines += ["[[client]]", 'name = "client"', f'public_key = "{self._public("client")}"', ""]
        write_bytes(path, "\n".join(lines).encode())

    def _write_agent_of(self, device: LocalDevice, far: set[str]) -> None:
        self._write_agent(device, self._endpoint(FIRST, FIRST in far))
        path = self.folder / f"{device.name}.toml"
        standby = {"node": self._endpoint(SECOND, SECOND in far), "node_public_key": self._public(SECOND)}
        table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in standby.items())
        write_bytes(path, path.read_bytes() + f"[[standby]]\n{table}".encode())


class CountingClient(Client):
    """A client that also counts the answers which it does not use, and compares them."""

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.came: Counter[int] = Counter()
        """Answers that came by the wire, by request."""

    def _take(self, message: Message) -> None:
        if message.kind is Kind.ANSWER and read_body(message, AnswerBody).logits:
            self.came[message.frame_id] += 1
        super()._take(message)


class Load:
    """Fifty requests a second, and what became of each."""

    def __init__(self, cell: Nodes, *, rate: float = 50.0, timeout_s: float = 10.0) -> None:
        fleet = load_fleet(cell.fleet_path)
        self.client = CountingClient.of_fleet(fleet, cell.client_keys, timeout_s=timeout_s)
        self.ended: dict[int, Answer | DevitError] = {}
        self.ended_s: dict[int, float] = {}
        self.asked_s: dict[int, float] = {}
        self.twice = 0
        self.gaps_s: list[float] = []
        """From each interruption to the first answer to a later request."""
        self._gap_s = 1 / rate
        self._next_s = time.monotonic()

    def run(self, duration_s: float, until: Callable[[], bool] = lambda: False) -> None:
        """Ask at the rate for a while, or until something has happened."""
        end_s = time.monotonic() + duration_s
        self._next_s = time.monotonic()
        while time.monotonic() < end_s and not until():
            if time.monotonic() >= self._next_s:
                self._next_s += self._gap_s
                self.asked_s[self.client.submit(IMAGE)] = time.monotonic()
            self._collect(min(self._next_s, end_s) - time.monotonic())

    def finish(self, timeout_s: float) -> None:
        """Wait until every request has ended."""
        end_s = time.monotonic() + timeout_s
        while len(self.ended) < len(self.asked_s) and time.monotonic() < end_s:
            self._collect(0.1)

    def answered_since(self, start_s: float) -> int:
        """Count the answers to requests of after a moment."""
        return sum(
            asked_s >= start_s and isinstance(self.ended.get(number), Answer)
            for number, asked_s in self.asked_s.items()
        )

    @property
    def lost(self) -> list[str]:
        """Why requests had no answer, or one without logits."""
        return [
            str(self.ended.get(number, "it has not ended"))
            for number in self.asked_s
            if not isinstance(found := self.ended.get(number), Answer) or found.logits is None
        ]

    def active(self) -> str:
        """Name the node that is asked, which is the active one."""
        return next(node.name for node in self.client.status().nodes if node.state == "active")

    def settle(self) -> None:
        """Wait until all devices answer."""
        end_s = time.monotonic() + _START_S
        while self.client.classify(IMAGE).state is not State.FULL or not self._is_whole():
            assert time.monotonic() < end_s, "no full answer"
            self.client.wait(0.05)

    def interrupt(self, what: Callable[[], object], limit_s: float) -> None:
        """Do something to the cell, and ask on until a request of after that has an answer."""
        what()
        start_s = time.monotonic()
        self.run(limit_s, lambda: self.answered_since(start_s) > 0)
        assert self.answered_since(start_s), f"no answer within {limit_s:g} s"
        self.gaps_s.append(time.monotonic() - start_s)

    def summary(self) -> str:
        """Say what became of all requests."""
        states = Counter(found.state.name.lower() for found in self.ended.values() if isinstance(found, Answer))
        again = sum(count > 1 for count in self.client.came.values())
        gaps = ", ".join(f"{gap_s:.2f}" for gap_s in self.gaps_s)
        return (
            f"{len(self.asked_s)} requests, {len(self.lost)} lost, {self.twice} ended twice, {again} computed twice, "
            f"states {dict(states)}; s to the first answer: {gaps}"
        )

    def _is_whole(self) -> bool:
        active = next((node for node in self.client.status().nodes if node.state == "active"), None)
        return active is not None and sum(name.startswith("jetson") for name in active.granted) == 4

    def _collect(self, timeout_s: float) -> None:
        for number, result in self.client.collect(max(0.0, timeout_s)):
            self.twice += number in self.ended
            self.ended[number] = result
            self.ended_s[number] = time.monotonic()


def _free_port() -> int:
    with tcp.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
