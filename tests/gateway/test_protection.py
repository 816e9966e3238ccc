"""Token and TLS at a real gateway: who shows no token sees nothing but that it lives."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.gateway.running import DEADLINE_S, INFER, Gateway, as_json, make_certificate

Images = npt.NDArray[np.uint8]
Start = Callable[..., Gateway]
TOKEN = "0123456789abcdef-token"
BEARER = f"Bearer {TOKEN}"
PAGES = ["/readyz", "/metrics", "/v2", "/v2/health/live", "/v2/models/devit", "/v2/models/devit/stats", "/nothing"]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def test_without_the_token_only_livez_is_told(start: Start, token_file: Path, images: Images) -> None:
    gateway = start("--token-file", str(token_file), "--log-requests")
    assert gateway.ask("/livez").status == 200
    for path in PAGES:
        reply = gateway.ask(path)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    wrong = ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xff"]
    for text in wrong:
        assert gateway.ask("/v2", Authorization=text).status == 401
        assert gateway.ask(INFER, as_json(images[:1]), Authorization=text).status == 401
    for path in PAGES:
        assert gateway.ask(path, Authorization=BEARER).status == (404 if path == "/nothing" else 200)
    assert gateway.ask(INFER, as_json(images[:1]), Authorization=f"bearer {TOKEN}").status == 200
    assert '"POST /v2/models/devit/infer HTTP/1.1" 200' in gateway.said
    assert TOKEN not in gateway.said
    gateway.forget_log()


def test_an_unread_body_without_the_token_is_refused(start: Start, token_file: Path) -> None:
    gateway = start("--token-file", str(token_file))
    with socket.create_connection(gateway.address, DEADLINE_S) as link:
        link.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n".encode())
        assert link.recv(100).startswith(b"HTTP/1.1 401 ")


def test_uploads_without_the_token_are_ended_and_take_no_memory(start: Start, token_file: Path, images: Images) -> None:
    """Twenty peers that send as fast as they can, whatever the answer is; others are answered meanwhile."""
    gateway = start("--token-file", str(token_file))
    assert gateway.ask(INFER, as_json(images[:1]), Authorization=BEARER).status == 200
    before = gateway.peak_bytes

    def is_ended(_: int) -> bool:
        with socket.create_connection(gateway.address, DEADLINE_S) as link, suppress(ConnectionError):
            link.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode())
            for _ in range(10_000):
                link.sendall(bytes(65536))
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        ended = pool.map(is_ended, range(20))
        assert gateway.ask(INFER, as_json(images[:1]), Authorization=BEARER).status == 200
        assert all(ended)
    assert gateway.peak_bytes - before < 32_000_000


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_texts_among_pixels_take_no_memory(gateway: Gateway, images: Images, encoding: str) -> None:
    """As an array of texts, each would take as much as the longest: 1.6 GB."""
    data = ["a" * 40_000, *[""] * 10_000]
    tensor = {"name": "image", "shape": images[:1].shape, "datatype": "UINT8", "data": data}
    body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
    before = gateway.peak_bytes
    reply = gateway.ask(INFER, gzip.compress(body) if encoding == "gzip" else body, Content_Encoding=encoding)
    assert (reply.status, "got `str`" in reply.json()["error"]) == (400, True)
    assert gateway.peak_bytes - before < 16_000_000


def test_others_reach_it_by_tls_with_the_token(start: Start, token_file: Path, tmp_path: Path, images: Images) -> None:
    cert, key = make_certificate(tmp_path)
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--token-file", str(token_file)]
    gateway = start("--http", "0.0.0.0:0", *options)
    assert gateway.url.startswith("https://0.0.0.0:")
    gateway.url = gateway.url.replace("0.0.0.0", "127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(cert))
    assert gateway.ask("/livez", tls=trusting).status == 200
    assert gateway.ask("/v2", tls=trusting).status == 401
    assert gateway.ask(INFER, as_json(images[:1]), tls=trusting, Authorization=BEARER).status == 200
    old = ssl.create_default_context(cafile=str(cert))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert gateway.ask("/livez", tls=old).status == 200
    with pytest.raises(OSError, match=r"reset|closed|empty|without response"):
        gateway.ask("/livez")


def test_behind_a_proxy_it_speaks_http_and_wants_the_token(start: Start, token_file: Path) -> None:
    gateway = start("--http", "0.0.0.0:0", "--behind-proxy", "--token-file", str(token_file))
    gateway.url = gateway.url.replace("0.0.0.0", "127.0.0.1")
    assert gateway.ask("/v2").status == 401
    assert gateway.ask("/v2", Authorization=BEARER, X_Forwarded_For="10.0.0.1").status == 200
