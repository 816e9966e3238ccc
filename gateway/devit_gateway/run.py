"""The gateway as a whole: connection, meter, application, server, from start to stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version

from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.keys import KeyPair
from devit_contract.service.journal import Log, Priority
from devit_contract.service.lifecycle import StopSignal
from devit_contract.wire.client import Client, require_key
from devit_gateway.access import Address
from devit_gateway.app import build_app
from devit_gateway.connection import Patience
from devit_gateway.joules import MeteredEnergy
from devit_gateway.node_client import AsyncNodeClient
from devit_gateway.power_watch import PowerWatch
from devit_gateway.serving import listen, serve


def run_gateway(
    fleet: Fleet,
    keys: KeyPair | None,
    address: Address,
    should_stop: StopSignal,
    *,
    token: bytes | None,
    timeout_s: float | None,
    power_interval_ms: int,
    logs_requests: bool,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until ``should_stop``.

    The node may take ``timeout_s`` for an answer; ``None`` stands for five seconds and twice the fleet's deadline. A
    ``power_interval_ms`` of 0 leaves the agents' sensors alone. ``on_ready`` is called with the URL once it accepts
    connections, even without a node.

    Raises:
        InputError: The fleet uses keys and none was given.
        AddressError: The address cannot be bound.
    """
    # A frame may wait as long as another takes.
    answer_s = timeout_s or 5.0 + 2 * fleet.serving.deadline_ms / 1000

    def connect() -> Client:
        return Client.of_fleet(fleet, keys, timeout_s=answer_s)

    log = Log("gateway")

    def connect_and_tell() -> Client:
        return Client.of_fleet(fleet, keys, timeout_s=answer_s, tell=lambda text: log.log(Priority.WARNING, text))

    require_key(fleet, keys)  # reported now, not at the first question
    with ExitStack() as stack:
        opened, url = listen(address)
        stack.callback(opened.close)
        watch = stack.enter_context(PowerWatch(connect, power_interval_ms)) if power_interval_ms else None
        in_flight = fleet.serving.credit  # as many as the devices hold: more would only age at the node
        node = stack.enter_context(AsyncNodeClient(connect_and_tell, in_flight=in_flight, timeout_s=answer_s))

        def energies() -> tuple[MeteredEnergy, ...]:
            return watch.readings if watch is not None else ()

        app = build_app(node, token=token, energies=energies, version=version("devit"), timeout_s=answer_s)
        serve(
            app,
            opened,
            address,
            should_stop.wait,
            on_ready=lambda: on_ready(url),
            logs_requests=logs_requests,
            grace_s=answer_s,
            patience=Patience(),
        )
