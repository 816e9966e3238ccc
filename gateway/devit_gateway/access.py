"""Access to the gateway: the address, its token, its TLS."""

from __future__ import annotations

import hmac
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from devit_contract.artefacts.files import named_failure
from devit_contract.artefacts.fleet import is_loopback, parse_endpoint
from devit_contract.artefacts.regular import read_regular
from devit_contract.errors import InputError

OPEN_PATH = "/livez"
"""The page that needs no token: whether the process is alive."""
_TOKEN = re.compile(rb"[!-~]{16,512}")


@dataclass(frozen=True)
class Address:
    """Where to listen, and how."""

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "http" if self.tls_cert is None else "https"


def check_address(
    text: str, *, has_token: bool, tls_cert: Path | None, tls_key: Path | None, is_behind_proxy: bool
) -> Address:
    """Check that an address, ``HOST:PORT``, is protected if others can reach it; a proxy in front may end TLS.

    Raises:
        InputError: It is no address, certificate and key do not fit, or others can reach it without token or TLS.
    """
    endpoint = f"tcp://{text}"
    try:
        host, port = parse_endpoint(endpoint, "--http")
    except InputError:
        raise InputError(f"--http: expected HOST:PORT such as 127.0.0.1:8080, found {text!r}") from None
    if (tls_cert is None) != (tls_key is None):
        raise InputError("expected --tls-cert and --tls-key together, found one of them")
    if tls_cert is not None and tls_key is not None:
        _check_tls(tls_cert, tls_key)
    if not is_loopback(endpoint):
        if not has_token:
            raise InputError(
                f"--http {text}: expected a token for an address that others can reach, found none: give --token-file"
            )
        if tls_cert is None and not is_behind_proxy:
            raise InputError(
                f"--http {text}: expected TLS for an address that others can reach, found none: give --tls-cert and "
                "--tls-key, or --behind-proxy where a proxy in front ends TLS"
            )
    return Address("0.0.0.0" if host == "*" else host, port, tls_cert, tls_key)


def load_token(path: Path) -> bytes:
    """Read a token.

    Raises:
        InputError: The file is missing, readable for others than its owner, or holds no token; the message never
            holds the text.
    """
    hint = f"make one with (umask 077; openssl rand -hex 32 > {path})"
    with named_failure(f"{path}: cannot be read", hint):
        mode = path.stat().st_mode & 0o777
        token = read_regular(path).strip()
    if mode & 0o077:
        raise InputError(f"{path}: expected mode 0600, found {mode:04o}: chmod 600 {path}")
    if not _TOKEN.fullmatch(token):
        raise InputError(
            f"{path}: expected a token of 16 to 512 printable characters without blanks, found other text of "
            f"{len(token)} bytes: {hint}"
        )
    return token


class TokenGate:
    """Accepts only requests with the token, for all paths but :data:`OPEN_PATH`."""

    def __init__(self, app: ASGIApp, token: bytes) -> None:
        """Wrap ``app``."""
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] == "lifespan" or scope["path"] == OPEN_PATH or self._has_token(scope):
            await self._app(scope, receive, send)
            return
        error = {"error": "expected the header Authorization: Bearer TOKEN, found none or another token"}
        refusal = JSONResponse(error, status_code=401, headers={"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _has_token(self, scope: Scope) -> bool:
        found = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
        # Always compared, and in constant time, so that the time reveals nothing.
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"


def _check_tls(cert: Path, key: Path) -> None:
    for path in (cert, key):
        if not path.is_file():
            raise InputError(f"{path}: expected a PEM file for TLS, found none")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (OSError, ssl.SSLError) as err:
        raise InputError(
            f"{cert}, {key}: expected a certificate in PEM and its unencrypted key, found: {err}: correct them"
        ) from err
