"""Network namespaces joined by a pair of virtual interfaces that lose packets, or carry few a second.

Needs root, ``ip`` and ``iptables`` or ``tc``.

They have no name: the kernel removes each when the last process in it, and this one, have ended, however that happens.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_BUCKET_BYTES, _BUCKET_S = 6000, 130e-6
"""The bucket's size: four packets, or what the link carries until the kernel's timer comes back to it for certain."""
_QUEUE_MS = 400
_LIBC = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace, with its own loopback."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open descriptor of it."""
        self._descriptor = descriptor

    @property
    def path(self) -> str:
        """What ``ip`` takes for its name."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread be in it, and all processes, threads and sockets that the block starts."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _check(_LIBC.setns(self._descriptor, _CLONE_NEWNET))
            yield
        finally:
            _check(_LIBC.setns(before, _CLONE_NEWNET))
            os.close(before)

    def run(self, *command: str) -> str:
        """Run a command in it."""
        with self.inside():
            return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _check(_LIBC.unshare(_CLONE_NEWNET))
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _check(_LIBC.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)
    try:
        found = Namespace(made)
        found.run("ip", "link", "set", "lo", "up")
        yield found
    finally:
        os.close(made)


@contextmanager
def lossy_pair(addresses: tuple[str, str], loss: float) -> Iterator[tuple[Namespace, Namespace]]:
    """Join two namespaces by a link that loses a share of the packets in either direction.

    Args:
        addresses: Of both ends, with the length of their common prefix: ``10.0.0.1/30``.
        loss: In 0 to 1.
    """
    with joined_pair(addresses) as ends:
        for end in ends:
            rule = ["-m", "statistic", "--mode", "random", "--probability", str(loss), "-j", "DROP"]
            end.run("iptables", "-A", "INPUT", "-i", "link0", *rule)
        yield ends


@contextmanager
def shaped_pair(addresses: tuple[str, str], rate_mbit: float) -> Iterator[tuple[Namespace, Namespace]]:
    """Join two namespaces by a link of a rate: one token bucket for all that an end sends. Needs ``tc``.

    The bucket holds so little that no image passes it at once. A delay is a matter of :mod:`tests.network.proxy`: not
    every kernel has netem.
    """
    with joined_pair(addresses) as ends:
        for end in ends:
            size = max(_BUCKET_BYTES, round(rate_mbit * 1e6 / 8 * _BUCKET_S))
            bucket = ["rate", f"{rate_mbit:g}mbit", "burst", str(size), "latency", f"{_QUEUE_MS}ms"]
            end.run("tc", "qdisc", "add", "dev", "link0", "root", "tbf", *bucket)
        yield ends


@contextmanager
def joined_pair(addresses: tuple[str, str]) -> Iterator[tuple[Namespace, Namespace]]:
    """Join two namespaces by a link."""
    with namespace() as near, namespace() as far:
        near.run("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", far.path)
        for end, address in zip((near, far), addresses, strict=True):
            end.run("ip", "address", "add", address, "dev", "link0")
            end.run("ip", "link", "set", "link0", "up")
        yield near, far


def dropped_packets(end: Namespace) -> int:
    """Tell how many packets its rule has dropped."""
    lines = end.run("iptables", "-L", "INPUT", "-v", "-x", "-n").splitlines()
    return int(lines[2].split()[0])


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
