"""The link to measure over: whether this machine can make it, and what it carries."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time

from tests.network.namespaces import Namespace

NEAR, FAR = "10.78.0.1", "10.78.0.2"
_PROBE_BYTES = 4_000_000


def why_not() -> str:
    """Say what is missing on this machine; empty if nothing is."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)}: install iproute2" if missing else ""


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
