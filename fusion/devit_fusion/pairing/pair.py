"""``devit pair``: shows a code, waits for one device that knows it, and adds that one to the fleet."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.errors import AddressError
from devit_contract.service.journal import Log
from devit_contract.wire.pairing import DEFAULT_PORT, new_code
from devit_fusion.pairing.host import Host, Joined
from devit_fusion.pairing.offer import Offer

_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of documentation (RFC 5737, RFC 3849): a route to them is asked for, nothing is sent."""


@dataclass(frozen=True)
class Invitation:
    """What the operator types on the device."""

    code: str
    address: str
    """Of this machine, with the port where it is not the usual one."""

    @property
    def command(self) -> str:
        """The line to type."""
        return f"devit join {self.address} {self.code}"


def pair(offer: Offer, port: int, timeout_s: float, log: Log, invite: Callable[[Invitation], None]) -> Joined:
    """Open the port beside the node's own, and wait for a device; ``invite`` is called once the port is open.

    Port 0 takes a free one.

    Raises:
        AddressError: The address cannot be bound.
        NoAnswerError: None has joined in time.
        InputError: The fleet file cannot be written.
    """
    host, _ = parse_endpoint(offer.fleet().node.endpoint, "endpoint")
    code = new_code()
    with _listen(host, port) as listening:
        invite(Invitation(code, _shown(host, listening)))
        try:
            return asyncio.run(_until_signal(Host(code, offer, log), listening, timeout_s))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _until_signal(host: Host, listening: socket.socket, timeout_s: float) -> Joined:
    """Let Ctrl-C and SIGTERM end it between two steps, wherever it is."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await host.serve(listening, timeout_s)


def _listen(host: str, port: int) -> socket.socket:
    """Listen where the node listens for devices."""
    where = "" if host == "*" else host
    try:
        found = socket.getaddrinfo(where or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = sorted(found, key=lambda each: each[0] != socket.AF_INET)[0]
        return socket.create_server(address[:2], family=family, backlog=32)
    except OSError as err:
        raise AddressError(
            f"{host}:{port}: expected a free address of this machine, found: {err.strerror or err}: "
            "stop what listens there or choose another --port"
        ) from err


def _shown(host: str, listening: socket.socket) -> str:
    """Name this machine as a device can reach it."""
    port = listening.getsockname()[1]
    if host == "*" or _is_any(host):
        host = _own_address(listening.family)
    host = f"[{host}]" if ":" in host else host
    return host if port == DEFAULT_PORT else f"{host}:{port}"


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _own_address(family: int) -> str:
    """Ask which address leads out of this machine; its name where none does."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((_ELSEWHERE[socket.AddressFamily(family)], 9))
            return str(asked.getsockname()[0])
    except OSError:
        return socket.gethostname()
