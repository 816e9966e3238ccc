"""The asking thread when the node, or it itself, fails: everybody hears of it, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np
import pytest

from devit_contract.errors import LinkError, LostLinkError, RefusedError
from devit_contract.wire.client import Client
from devit_contract.wire.status import NodeStatus
from devit_gateway.node_client import AsyncNodeClient
from devit_pipeline.local_cell import LocalCell


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_by_a_bug_fails_what_waits_and_what_comes() -> None:
    def connect() -> Client:
        raise RuntimeError("a bug")

    async def ask(node_client: AsyncNodeClient) -> None:
        for _ in range(2):
            with pytest.raises(LostLinkError, match="the thread of the"):
                await asyncio.wait_for(node_client.status(), 30)
        with pytest.raises(LostLinkError, match="restart the gateway"):
            await asyncio.wait_for(node_client.classify([np.zeros((1, 1, 1), np.uint8)]), 30)

    with AsyncNodeClient(connect, in_flight=1, timeout_s=30.0) as node_client:
        asyncio.run(ask(node_client))
        assert node_client.is_over


def test_what_is_under_way_when_it_stops_ends_with_an_error() -> None:
    """Nobody listens at the address, and the time to wait is long."""

    async def ask() -> None:
        with AsyncNodeClient(
            lambda: Client("tcp://127.0.0.1:9", timeout_s=600.0), in_flight=1, timeout_s=600.0
        ) as node_client:
            asked = asyncio.ensure_future(node_client.classify([np.zeros((1, 1, 1), np.uint8)] * 3))
            await asyncio.sleep(0)  # so that it has asked
        assert [type(result) for result in await asyncio.wait_for(asked, 30)] == [LostLinkError] * 3

    asyncio.run(ask())


def test_a_connection_that_the_node_refuses_is_replaced_by_another(cell: LocalCell) -> None:
    """The first one shows no key; without a second one, every later question would be refused too."""
    connections = iter([Client(cell.fleet.node.client_endpoint, timeout_s=30.0), cell.client()])

    async def ask(node_client: AsyncNodeClient) -> NodeStatus:
        with pytest.raises(RefusedError, match="the handshake failed"):
            await asyncio.wait_for(node_client.status(), 30)
        with suppress(LinkError):  # it hears the same while the thread lets go of the first connection
            await asyncio.wait_for(node_client.status(), 30)
        return await asyncio.wait_for(node_client.status(), 30)

    with AsyncNodeClient(lambda: next(connections), in_flight=1, timeout_s=30.0) as node_client:
        assert len(asyncio.run(ask(node_client)).devices) == 2
    assert list(connections) == []


def test_an_image_that_waits_in_vain_is_told_where_to_look() -> None:
    """Nobody listens at the address, and a question takes longer than an image may wait."""

    async def ask(node_client: AsyncNodeClient) -> list[str]:
        images = [np.zeros((1, 1, 1), np.uint8)] * 2
        asked = asyncio.gather(node_client.status(), node_client.classify(images), return_exceptions=True)
        _, results = await asyncio.wait_for(asked, 30)
        return [str(result) for result in results]  # type: ignore[union-attr]

    with AsyncNodeClient(lambda: Client("tcp://127.0.0.1:9", timeout_s=0.3), in_flight=1, timeout_s=0.1) as node_client:
        for said in asyncio.run(ask(node_client)):
            assert said.startswith("tcp://127.0.0.1:9: ")
            assert "check that fusion-node runs there" in said


def test_large_batches_do_not_hold_up_a_single_image(cell: LocalCell) -> None:
    """They take turns with it, image by image."""
    image = np.zeros((6, 8, 1), np.uint8)

    async def ask(node_client: AsyncNodeClient) -> list[bool]:
        batches = [asyncio.ensure_future(node_client.classify([image] * 64)) for _ in range(4)]
        await asyncio.sleep(0)  # so that they come first
        await asyncio.wait_for(node_client.classify([image]), 30)
        found = [batch.done() for batch in batches]
        assert [len(results) for results in await asyncio.wait_for(asyncio.gather(*batches), 30)] == [64] * 4
        return found

    with AsyncNodeClient(cell.client, in_flight=2, timeout_s=30.0) as node_client:
        assert asyncio.run(ask(node_client)) == [False] * 4


def test_a_batch_that_nobody_waits_for_is_dropped(cell: LocalCell) -> None:
    image = np.zeros((6, 8, 1), np.uint8)

    async def ask(node_client: AsyncNodeClient) -> None:
        batch = asyncio.ensure_future(node_client.classify([image] * 1000))
        await asyncio.wait_for(node_client.classify([image]), 30)
        batch.cancel()
        for _ in range(100):  # each of which would be a turn for the other batch too
            await asyncio.wait_for(node_client.classify([image]), 30)

    with cell.client() as client, AsyncNodeClient(cell.client, in_flight=2, timeout_s=30.0) as node_client:
        before = sum(client.status().frames.values())
        asyncio.run(ask(node_client))
        assert sum(client.status().frames.values()) - before < 150
