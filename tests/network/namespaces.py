"""Network namespaces joined by a pair of virtual interfaces that lose packets; needs root, ``ip`` and ``iptables``.

They have no name: the kernel removes each when the last process in it, and this one, have ended, however that happens.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_CLONE_NEWNET = 0x40000000
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
    with ExitStack() as stack:
        near, far = (stack.enter_context(namespace()) for _ in addresses)
        near.run("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", far.path)
        for end, address in zip((near, far), addresses, strict=True):
            end.run("ip", "address", "add", address, "dev", "link0")
            end.run("ip", "link", "set", "link0", "up")
            rule = ["-m", "statistic", "--mode", "random", "--probability", str(loss), "-j", "DROP"]
            end.run("iptables", "-A", "INPUT", "-i", "link0", *rule)
        yield near, far


def dropped_packets(end: Namespace) -> int:
    """Tell how many packets its rule has dropped."""
    lines = end.run("iptables", "-L", "INPUT", "-v", "-x", "-n").splitlines()
    return int(lines[2].split()[0])


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
