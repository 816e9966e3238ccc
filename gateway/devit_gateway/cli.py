"""The command ``devit gateway``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from devit_contract.extras import require
from devit_contract.service import terminal
from devit_contract.service.application_cli import Application

app = Application(no_args_is_help=True)


@app.command()
def gateway(
    fleet: Annotated[Path, typer.Option(help="Fleet file with endpoint and key of the node.")],
    key: Annotated[Path | None, typer.Option(help="Secret key file of the gateway, a client of the fleet.")] = None,
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address to listen on; port 0 picks a free port.")] = (
        "127.0.0.1:8080"
    ),
    token_file: Annotated[
        Path | None, typer.Option(help="File (mode 0600) with the token that clients must send.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM), with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy terminates TLS: allow plain HTTP on every address.")
    ] = False,
    timeout_s: Annotated[
        float | None,
        typer.Option(min=0.1, help="Timeout for an answer of the node in seconds (default: 5 s + 2 x deadline)."),
    ] = None,
    sample_power: Annotated[
        int, typer.Option(metavar="MS", min=0, max=60_000, help="Power sampling period of the agents; 0 disables it.")
    ] = 0,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log one line per request to stderr.")] = False,
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", help="Also stop when standard input is closed.")
    ] = False,
) -> None:
    """Serve HTTP for a fusion node: Open Inference Protocol (KServe V2), health, Prometheus metrics.

    Prints one JSON line with its URL when it listens. Reconnects to the node automatically. Stops on SIGTERM or Ctrl-C.
    """
    require("http")
    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.artefacts.keys import load_keys
    from devit_contract.service.lifecycle import StopSignal
    from devit_gateway.access import check_address, load_token
    from devit_gateway.run import run_gateway

    should_stop = StopSignal(with_stdin=stop_with_stdin)
    token = load_token(token_file) if token_file is not None else None
    run_gateway(
        load_fleet(fleet),
        load_keys(key) if key is not None else None,
        check_address(
            http, has_token=token is not None, tls_cert=tls_cert, tls_key=tls_key, is_behind_proxy=behind_proxy
        ),
        should_stop,
        token=token,
        timeout_s=timeout_s,
        power_interval_ms=sample_power,
        logs_requests=log_requests,
        on_ready=lambda url: terminal.print_json({"ready": True, "pid": os.getpid(), "http": url}, indent=0),
    )


def main() -> NoReturn:
    """Run as a process of its own."""
    terminal.run(app, "devit gateway")
