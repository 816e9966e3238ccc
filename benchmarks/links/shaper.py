"""Two network namespaces joined by a link of a fixed rate: one token bucket for all that either end sends.

Needs root, ``ip`` and ``tc``. The bucket holds so little that no image passes it at once; delay is a matter of
:mod:`tests.network.proxy`, as not every kernel has netem.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.network.namespaces import Namespace, namespace

NEAR, FAR = "10.78.0.1", "10.78.0.2"
_BUCKET_BYTES, _BUCKET_S = 6000, 130e-6
"""The bucket's size, four packets, or what the link carries until the kernel's timer comes back to it for certain."""
_QUEUE_MS = 400
_PROBE_BYTES = 4_000_000


def why_not() -> str:
    """Say what is missing on this machine; empty if nothing is."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)}: install iproute2" if missing else ""


@contextmanager
def shaped_pair(rate_mbit: float) -> Iterator[tuple[Namespace, Namespace]]:
    """Join two namespaces, with the addresses :data:`NEAR` and :data:`FAR`, by a link of that rate each way."""
    with namespace() as near, namespace() as far:
        near.run("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", far.path)
        for end, address in ((near, NEAR), (far, FAR)):
            end.run("ip", "address", "add", f"{address}/30", "dev", "link0")
            end.run("ip", "link", "set", "link0", "up")
            size = max(_BUCKET_BYTES, round(rate_mbit * 1e6 / 8 * _BUCKET_S))
            bucket = ["rate", f"{rate_mbit:g}mbit", "burst", str(size), "latency", f"{_QUEUE_MS}ms"]
            end.run("tc", "qdisc", "add", "dev", "link0", "root", "tbf", *bucket)
        yield near, far


def measured_mbit(near: Namespace, far: Namespace) -> float:
    """Send some megabytes over the link by plain TCP, and tell at which rate they arrived."""
    with far.inside():
        listener = socket.create_server((FAR, 0))
    with listener, near.inside(), socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()
        thread = threading.Thread(target=sender.sendall, args=(bytes(_PROBE_BYTES),), daemon=True)
        with receiver:
            thread.start()
            start_s, left = time.perf_counter(), _PROBE_BYTES
            while left > 0:
                left -= len(receiver.recv(1 << 20))
            taken_s = time.perf_counter() - start_s
        thread.join()
    return _PROBE_BYTES * 8 / taken_s / 1e6
