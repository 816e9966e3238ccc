"""Nodes by name, with the machine's own resolver: a name may have an address that the node does not listen on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="an own /etc/hosts needs root"),
]

ASK = """
import time
from devit_contract.wire.client import Client
from devit_contract.wire.sockets import CLIENTS, bind_router, open_context

with open_context() as context:
    router, endpoint, _ = bind_router(context, "tcp://127.0.0.1:0", CLIENTS, None)
    start_s = time.monotonic()
    with Client("tcp://fusion_node:" + endpoint.rsplit(":", 1)[1], tell=print) as client:
        client.submit(None)
        while not router.poll(0) and time.monotonic() < start_s + 20:
            client.wait(0.01)
        print("linked" if router.poll(0) else "not linked")
"""


@pytest.mark.parametrize(
    "hosts", ["127.0.0.1 fusion_node\n", "::1 fusion_node\n127.0.0.1 fusion_node\n"], ids=["A", "AAAA and A"]
)
def test_a_node_on_ipv4_is_reached_by_its_name(hosts: str, tmp_path: Path) -> None:
    """Debian's own hosts file gives localhost both addresses."""
    file = tmp_path / "hosts"
    file.write_text(hosts)
    script = f"mount --bind {file} /etc/hosts && exec {sys.executable} -"
    command = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(command, input=ASK, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("linked\n", "")
