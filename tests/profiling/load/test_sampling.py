"""Power samples of a cell's devices, and what is kept of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from devit_contract.wire.client import Client
from devit_contract.wire.messages import PowerLine, Telemetry
from devit_profiling.load.sampling import Sampling


def test_a_device_that_floods_is_named_and_no_more_is_kept_of_it() -> None:
    """The other's samples still come."""
    flood = Telemetry("jetson1", tuple(PowerLine(number, "RAM 1/2MB") for number in range(400)))
    calm = Telemetry("jetson2", (PowerLine(1, "RAM 1/2MB"),))
    client: Any = SimpleNamespace(take_telemetry=lambda: [flood, calm])
    sampling = Sampling(cast(Client, client), ["jetson1", "jetson2"], 60_000)
    for _ in range(50):
        sampling.collect()
    assert len(sampling.lines["jetson1"]) == 800
    assert sampling.errors == {"jetson1": "it sends more than lines of tegrastats every 60000 ms: check its agent"}
    assert len(sampling.lines["jetson2"]) == 50
