"""A whole cell on this machine: one fusion node and N agents as processes, with keys, on loopback."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.fleet import Device, Fleet, load_fleet
from devit_contract.artefacts.keys import KeyPair, load_keys, new_keys
from devit_contract.errors import NoAnswerError
from devit_contract.wire.client import Client

_START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 5.0
_END_S = 1.0
"""How long a process may take from closing its output to its end."""
_LINES_TOLD = 5
"""Of a log whose process did not start."""


@dataclass(frozen=True)
class LocalDevice:
    """One agent of the cell."""

    name: str
    submodel: int
    tegrastats: tuple[str, ...] = ()
    """Command that samples power; empty for none."""
    root: str = "/"
    """Where the agent looks for /proc/device-tree; a folder with a simulated board's."""
    engine: str = "built"
    """``built``, ``built:MS``, ``null`` or ``paced:MS``."""


class LocalCell:
    """A running cell; a context manager. No process outlives the block, or this process, however it ends."""

    def __init__(
        self,
        bundle: Path,
        folder: Path,
        devices: Sequence[LocalDevice],
        *,
        store: Path | None = None,
        deadline_ms: float = 1000.0,
        min_devices: int = 1,
        credit: int = 2,
        queue: int = 64,
        settings: str = "",
        http: str = "",
        port: int = 0,
    ) -> None:
        """Describe the cell; nothing is written or started yet.

        Args:
            bundle: Bundle folder.
            folder: Where keys, configurations and logs go.
            devices: The agents.
            store: Engine store; ``None`` is the user's default.
            deadline_ms: From a frame's dispatch to its end.
            min_devices: Fewest features an answer is given on.
            credit: Frames in flight per device.
            queue: Requests that may wait.
            settings: More lines of ``[serving]`` in fleet.toml, and whole tables after them.
            http: ``HOST:PORT`` of an HTTP gateway to start too, port 0 for a free one; empty for none.
            port: The node's for devices, clients have the next one; 0 for free ones.
        """
        self.bundle = bundle.absolute()
        self.folder = folder.absolute()
        self.devices = {device.name: device for device in devices}
        self.store = store
        self._http = http
        self._port = port
        self.http_url = ""
        """Where the gateway listens, with the real port; empty without one."""
        numbers = f"deadline_ms = {deadline_ms:g}\nmin_devices = {min_devices}\ncredit = {credit}\nqueue = {queue}\n"
        self._serving = numbers + settings
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._keys: dict[str, KeyPair] = {}
        self.fleet_path = self.folder / "fleet.toml"
        self.client_key_path = self.folder / "keys" / "client.key_secret"

    def __enter__(self) -> LocalCell:
        """Make keys and configurations, start everything, wait until every device is ready.

        Raises:
            NoAnswerError: A process ended or was not ready in time; the text holds the end of its log.
        """
        try:
            self._keys = {name: new_keys(self.folder / "keys", name) for name in ("node", "client", *self.devices)}
            for_devices, for_clients = (self._port, self._port + 1) if self._port else (0, 0)
            self._write_fleet(f"tcp://127.0.0.1:{for_devices}", f"tcp://127.0.0.1:{for_clients}")
            ready = self.start_node()
            self._write_fleet(str(ready["endpoint"]), str(ready["client_endpoint"]))
            for device in self.devices.values():
                self._write_agent(device, str(ready["endpoint"]))
            self.start_agents(list(self.devices))
            if self._http:
                self.http_url = str(self.start_gateway()["http"])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self.close()

    def close(self) -> None:
        """Stop everything, the node last, so that agents can disconnect: by SIGTERM, and SIGKILL after five seconds."""
        for names in ([name for name in self._children if name != "node"], ["node"]):
            children = [self._children.pop(name) for name in names if name in self._children]
            for child in children:
                child.terminate()
            end_s = time.monotonic() + _STOP_DEADLINE_S
            for child in children:
                try:
                    child.wait(max(0.0, end_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                _close_pipes(child)

    @property
    def fleet(self) -> Fleet:
        """The fleet file with the real ports."""
        return load_fleet(self.fleet_path)

    @property
    def client_keys(self) -> KeyPair:
        """Keys that the node lets in on its client port."""
        return load_keys(self.client_key_path)

    def client(self, timeout_s: float = 30.0) -> Client:
        """Connect to the node."""
        return Client.of_fleet(self.fleet, self.client_keys, timeout_s=timeout_s)

    def pid(self, name: str) -> int:
        """Process id of ``node`` or of a device's agent."""
        return self._children[name].pid

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of all running processes, by name; safe from any thread."""
        return {name: child.pid for name, child in list(self._children.items())}

    def kill(self, name: str) -> None:
        """Kill a process (SIGKILL), as a power cut would."""
        child = self._children.pop(name)
        child.kill()
        child.wait()
        _close_pipes(child)

    def start_node(self) -> dict[str, object]:
        """Start the node, the first time on free ports and after a :meth:`kill` on the same ones."""
        command = ["--bundle", str(self.bundle), "--fleet", str(self.fleet_path)]
        self._start("node", "fusion_node", [*command, "--key", str(self.folder / "keys/node.key_secret")])
        return self._wait_ready("node", time.monotonic() + _START_DEADLINE_S)

    def start_gateway(self) -> dict[str, object]:
        """Start the HTTP gateway, with the client's key."""
        command = ["--fleet", str(self.fleet_path), "--key", str(self.client_key_path), "--http", self._http]
        self._start("gateway", "gateway", command)
        return self._wait_ready("gateway", time.monotonic() + _START_DEADLINE_S)

    def start_agents(self, names: Sequence[str]) -> None:
        """Start agents and wait until the node has accepted each."""
        for name in names:
            arguments = ["--config", str(self.folder / f"{name}.toml"), "--engine", self.devices[name].engine]
            self._start(name, "edge_agent", arguments)
        end_s = time.monotonic() + _START_DEADLINE_S
        for name in names:
            self._wait_ready(name, end_s)

    def prepare(self, device: LocalDevice) -> Device:
        """Make keys and configuration of one more agent; it belongs to the cell once the fleet file says so."""
        self.devices[device.name] = device
        self._keys[device.name] = new_keys(self.folder / "keys", device.name)
        self._write_agent(device, self.fleet.node.endpoint)
        return Device(device.name, device.submodel, self._public(device.name))

    def log_path(self, name: str) -> Path:
        """Where a process's stderr goes."""
        return self.folder / "logs" / f"{name}.log"

    def _start(self, name: str, program: str, arguments: list[str]) -> None:
        self.log_path(name).parent.mkdir(parents=True, exist_ok=True)
        entry = f"from devit_pipeline.entry import {program}; {program}()"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self.log_path(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-c", entry, *arguments, "--stop-with-stdin"],
                stdin=subprocess.PIPE,  # closed when this process dies, which ends the child
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process, which then ends the child
                env=environment,
            )

    def _wait_ready(self, name: str, end_s: float) -> dict[str, object]:
        child = self._children[name]
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            has_come = selector.select(max(0.0, end_s - time.monotonic()))
        line = child.stdout.readline() if has_come else b""
        if not line:
            raise NoAnswerError(f"{name}: {_fate(child)}; its log ends: {_end_of(self.log_path(name))}")
        answer: dict[str, object] = json.loads(line)
        return answer

    def _write_fleet(self, endpoint: str, client_endpoint: str) -> None:
        lines = [
            "schema = 2",
            "[node]",
            f'endpoint = "{endpoint}"',
            f'client_endpoint = "{client_endpoint}"',
            f'public_key = "{self._public("node")}"',
            "[serving]",
            self._serving,
        ]
        for device in self.devices.values():
            lines += ["[[device]]", f'name = "{device.name}"', f"submodel = {device.submodel}"]
            lines += [f'public_key = "{self._public(device.name)}"']
        lines += ["[[client]]", 'name = "client"', f'public_key = "{self._public("client")}"', ""]
        write_bytes(self.fleet_path, "\n".join(lines).encode())

    def _write_agent(self, device: LocalDevice, endpoint: str) -> None:
        lines = [
            "schema = 1",
            f'name = "{device.name}"',
            f"submodel = {device.submodel}",
            f'node = "{endpoint}"',
            f'node_public_key = "{self._public("node")}"',
            f'secret_key = "keys/{device.name}.key_secret"',
            f"bundle = {json.dumps(str(self.bundle))}",
            f"store = {json.dumps(str(self.store.absolute()) if self.store is not None else '')}",
            f"tegrastats = {json.dumps(list(device.tegrastats))}",
            f"root = {json.dumps(device.root)}",
            "",
        ]
        write_bytes(self.folder / f"{device.name}.toml", "\n".join(lines).encode())

    def _public(self, name: str) -> str:
        return self._keys[name].public.decode()


def _fate(child: subprocess.Popen[bytes]) -> str:
    """Say how far a process came that is not ready."""
    try:
        return f"ended with exit code {child.wait(_END_S)} before it was ready"
    except subprocess.TimeoutExpired:
        return f"not ready after {_START_DEADLINE_S:.0f} s"


def _end_of(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return f"{' | '.join(lines[-_LINES_TOLD:]) or 'it is empty'} ({log})"


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
