"""Addresses, tokens and TLS files: what is let through, and one line for what is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.gateway.running import make_certificate

from devit_contract.errors import InputError
from devit_gateway.access import check_address, load_token


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def check(text: str, *, token: bool = False, tls: tuple[Path, Path] | None = None, proxy: bool = False) -> str:
    cert, key = tls or (None, None)
    found = check_address(text, has_token=token, tls_cert=cert, tls_key=key, is_behind_proxy=proxy)
    return f"{found.scheme}://{found.host}:{found.port}"


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.0.0.7:8080", "localhost:80", "[::1]:8080"])
def test_loopback_needs_nothing(text: str) -> None:
    assert check(text).startswith("http://")


@pytest.mark.parametrize("text", ["0.0.0.0:80", "*:80", "10.0.0.2:80", "[::]:80", "node.example:80"])
def test_what_others_can_reach_needs_a_token_and_tls(text: str, certificate: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="--token-file"):
        check(text, tls=certificate)
    with pytest.raises(InputError, match="--token-file"):
        check(text, proxy=True)
    with pytest.raises(InputError, match="--tls-cert"):
        check(text, token=True)
    assert check(text, token=True, tls=certificate).startswith("https://")
    assert check(text, token=True, proxy=True).startswith("http://")


@pytest.mark.parametrize("text", ["", "8080", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:80", "a b:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--http: expected HOST:PORT such as"):
        check(text)


def test_certificate_and_key_must_be_there_and_fit(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    _, other_key = make_certificate(tmp_path)
    for pair in ((cert, tmp_path / "absent"), (key, cert), (cert, other_key)):
        with pytest.raises(InputError, match=r"PEM"):
            check("127.0.0.1:0", tls=pair)
    with pytest.raises(InputError, match="together"):
        check_address("127.0.0.1:0", has_token=False, tls_cert=cert, tls_key=None, is_behind_proxy=False)


def test_a_key_under_a_password_is_refused_without_asking_for_it(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", str(certificate[1]), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with pytest.raises(InputError, match="unencrypted"):
        check("127.0.0.1:0", tls=(certificate[0], locked))


def test_a_token_is_read_without_its_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    assert load_token(path) == b"0123456789abcdef"


@pytest.mark.parametrize("text", ["", "short", "blank inside the token", "gr\u00fcn" * 8, "x" * 513])
def test_what_is_no_token_is_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match="16 to 512") as raised:
        load_token(path)
    assert not text or text not in str(raised.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    path.chmod(mode)
    with pytest.raises(InputError, match="chmod 600"):
        load_token(path)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_token(tmp_path / "absent")
