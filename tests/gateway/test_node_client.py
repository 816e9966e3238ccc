"""The asking thread when the node, or it itself, fails: everybody hears of it, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np
import pytest

from devit_contract.errors import LinkError
from devit_contract.wire.client import Client
from devit_contract.wire.messages import NodeStatus
from devit_gateway.node_client import Asker
from devit_pipeline.local_cell import LocalCell


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_by_a_bug_fails_what_waits_and_what_comes() -> None:
    def connect() -> Client:
        raise RuntimeError("a bug")

    async def ask(asker: Asker) -> None:
        for _ in range(2):
            with pytest.raises(LinkError, match="expected"):
                await asyncio.wait_for(asker.status(), 30)
        with pytest.raises(LinkError, match="restart the gateway"):
            await asyncio.wait_for(asker.classify([np.zeros((1, 1, 1), np.uint8)]), 30)

    with Asker(connect, in_flight=1, timeout_s=30.0) as asker:
        asyncio.run(ask(asker))
        assert asker.is_over


def test_what_is_under_way_when_it_stops_ends_with_an_error() -> None:
    """Nobody listens at the address, and the time to wait is long."""

    async def ask() -> None:
        with Asker(lambda: Client("tcp://127.0.0.1:9", timeout_s=600.0), in_flight=1, timeout_s=600.0) as asker:
            asked = asyncio.ensure_future(asker.classify([np.zeros((1, 1, 1), np.uint8)] * 3))
            await asyncio.sleep(0)  # so that it has asked
        assert [type(result) for result in await asyncio.wait_for(asked, 30)] == [LinkError] * 3

    asyncio.run(ask())


def test_a_connection_that_the_node_refuses_is_replaced_by_another(cell: LocalCell) -> None:
    """The first one shows no key; without a second one, every later question would be refused too."""
    connections = iter([Client(cell.fleet.node.client_endpoint, timeout_s=30.0), cell.client()])

    async def ask(asker: Asker) -> NodeStatus:
        with pytest.raises(LinkError, match="the handshake failed"):
            await asyncio.wait_for(asker.status(), 30)
        with suppress(LinkError):  # it hears the same while the thread lets go of the first connection
            await asyncio.wait_for(asker.status(), 30)
        return await asyncio.wait_for(asker.status(), 30)

    with Asker(lambda: next(connections), in_flight=1, timeout_s=30.0) as asker:
        assert len(asyncio.run(ask(asker)).devices) == 2
    assert list(connections) == []


def test_an_image_that_waits_in_vain_is_told_where_to_look() -> None:
    """Nobody listens at the address, and a question takes longer than an image may wait."""

    async def ask(asker: Asker) -> list[str]:
        images = [np.zeros((1, 1, 1), np.uint8)] * 2
        asked = asyncio.gather(asker.status(), asker.classify(images), return_exceptions=True)
        _, results = await asyncio.wait_for(asked, 30)
        return [str(result) for result in results]  # type: ignore[union-attr]

    with Asker(lambda: Client("tcp://127.0.0.1:9", timeout_s=0.3), in_flight=1, timeout_s=0.1) as asker:
        for said in asyncio.run(ask(asker)):
            assert said.startswith("tcp://127.0.0.1:9: expected")
            assert "check that fusion-node runs there" in said
