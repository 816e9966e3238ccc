"""A gateway as a process, and how to ask it by hand."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from devit_pipeline.local_cell import LocalCell

DEADLINE_S = 30.0
INFER = "/v2/models/devit/infer"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - what JSON can hold
        return json.loads(self.body)


class Gateway:
    """A running ``devit gateway``; a context manager that ends it, and finds that it had nothing to complain of."""

    def __init__(self, cell: LocalCell, log_path: Path, *options: str, key: Path | None = None) -> None:
        self._log_path = log_path
        self._may_say = False
        command = ["gateway", "--fleet", str(cell.fleet_path), "--key", str(key or cell.client_key_path)]
        if "--http" not in options:
            command += ["--http", "127.0.0.1:0"]
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from devit_pipeline.cli import main; main()", *command, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        has_come = select.select([self.process.stdout], [], [], DEADLINE_S)[0]
        self.first_line: dict[str, Any] = json.loads(self.process.stdout.readline() if has_come else b"{}")
        self.url: str = self.first_line["http"]

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.process.terminate()
            code = self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
        if kind is None:
            assert code == 0
            told = [line for line in self.said.splitlines() if "no link to the node" not in line]
            assert self._may_say or told == []

    @property
    def said(self) -> str:
        """What it has written on stderr."""
        return self._log_path.read_text()

    def forget_log(self) -> None:
        """Let what it has said, and what it will say, be."""
        self._may_say = True

    @property
    def host(self) -> str:
        """HOST:PORT."""
        return urlsplit(self.url).netloc

    @property
    def address(self) -> tuple[str, int]:
        """For a socket."""
        host, _, port = self.host.partition(":")
        return host, int(port)

    @property
    def peak_bytes(self) -> int:
        """The most memory it has ever used."""
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(line) * 1024

    def ask(
        self,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        *,
        method: str | None = None,
        tls: ssl.SSLContext | None = None,
        **headers: str,
    ) -> Reply:
        """Ask for a page; ``_`` in names of headers stands for ``-``."""
        connection: http.client.HTTPConnection
        if tls is None:
            connection = http.client.HTTPConnection(self.host, timeout=DEADLINE_S)
        else:
            connection = http.client.HTTPSConnection(self.host, timeout=DEADLINE_S, context=tls)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            connection.close()

    def ask_until(self, path: str, wanted: Callable[[Reply], bool], body: bytes | None = None) -> Reply:
        """Ask again and again until the reply is as wanted."""
        end_s = time.monotonic() + DEADLINE_S
        while True:
            reply = self.ask(path, body)
            if wanted(reply):
                return reply
            assert time.monotonic() < end_s, reply


def as_json(images: npt.NDArray[np.uint8], **fields: Any) -> bytes:  # noqa: ANN401 - what JSON can hold
    """A request with all pixels as JSON."""
    tensor = {"name": "image", "shape": images.shape, "datatype": "UINT8", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor]} | fields).encode()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return cert, key
