"""The gateway as a whole: connection, meter, application, server, from start to stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version

from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.keys import KeyPair
from devit_contract.service.lifecycle import StopSignal
from devit_contract.wire.client import Client, require_key
from devit_gateway.access import Address
from devit_gateway.app import build_app
from devit_gateway.joules import MeteredEnergy
from devit_gateway.node_client import AsyncNodeClient
from devit_gateway.power_watch import PowerWatch
from devit_gateway.serving import listen, serve


@dataclass(frozen=True)
class Settings:
    """How to run."""

    fleet: Fleet
    keys: KeyPair | None
    address: Address
    token: bytes | None = field(repr=False)
    timeout_s: float | None
    """How long the node may take for an answer; ``None``: five seconds and twice the fleet's deadline."""
    power_interval_ms: int
    """0 leaves the agents' sensors alone."""
    logs_requests: bool


def run_gateway(settings: Settings, should_stop: StopSignal, on_ready: Callable[[str], None]) -> None:
    """Serve until ``should_stop``.

    Args:
        settings: How to run.
        should_stop: Set by signals.
        on_ready: Called with the URL once it accepts connections, even without a node.

    Raises:
        InputError: The fleet uses keys and none was given.
        AddressError: The address cannot be bound.
    """
    # A frame may wait as long as another takes.
    timeout_s = settings.timeout_s or 5.0 + 2 * settings.fleet.serving.deadline_ms / 1000

    def connect() -> Client:
        return Client.of_fleet(settings.fleet, settings.keys, timeout_s=timeout_s)

    require_key(settings.fleet, settings.keys)  # reported now, not at the first question
    with ExitStack() as stack:
        opened, url = listen(settings.address)
        stack.callback(opened.close)
        watch = None
        if settings.power_interval_ms:
            watch = stack.enter_context(PowerWatch(connect, settings.power_interval_ms))
        in_flight = settings.fleet.serving.credit  # as many as the devices hold: more would only age at the node
        node = stack.enter_context(AsyncNodeClient(connect, in_flight=in_flight, timeout_s=timeout_s))

        def energies() -> tuple[MeteredEnergy, ...]:
            return watch.readings if watch is not None else ()

        app = build_app(
            node,
            token=settings.token,
            energies=energies,
            version=version("devit"),
            timeout_s=timeout_s,
        )
        serve(
            app,
            opened,
            settings.address,
            should_stop,
            on_ready=lambda: on_ready(url),
            logs_requests=settings.logs_requests,
        )
