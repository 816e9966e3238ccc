"""The pages: inference, metadata, health, metrics; every error is JSON with one line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from devit_contract.errors import DevitError, InputError, LinkError
from devit_contract.wire.answer import Answer
from devit_contract.wire.codec import State
from devit_contract.wire.status import NodeStatus
from devit_gateway import model_pages
from devit_gateway.access import OPEN_PATH, TokenGate
from devit_gateway.bodies import BodyReader, compress, decompress, encoding_of
from devit_gateway.connection import CloseUnread
from devit_gateway.exposition import write_metrics
from devit_gateway.infer_request import InferRequest, Shape, max_body_bytes, parse_request
from devit_gateway.infer_response import MODEL, VERSION, write_response
from devit_gateway.joules import MeteredEnergy
from devit_gateway.node_client import AsyncNodeClient

T = TypeVar("T")

_STATUS_AGE_S = 1.0
"""How old the node's state may be before an inference, which fails on its own if the node has gone."""
_LARGE_BYTES = 256 * 1024
"""Larger bodies, and compressed ones, are parsed in a thread, so that other requests do not wait."""
_PARSERS = 4
"""Such threads at the same time: they share one core with the loop."""
_MAX_WAITING = 256
"""Requests that wait for the node."""


class Pages:
    """What the routes call."""

    def __init__(
        self, node: AsyncNodeClient, energies: Callable[[], tuple[MeteredEnergy, ...]], version: str, timeout_s: float
    ) -> None:
        """Join the parts; ``energies`` gives what has been metered, ``timeout_s`` is how long a question may take."""
        # Twice the longest turn of the thread, which is a question to a node that is down.
        self._live_s = 2 * timeout_s + 10.0
        self._node = node
        self._energies = energies
        self._version = version
        self._bodies = BodyReader()
        self._parsers = asyncio.Semaphore(_PARSERS)
        self._waiting = 0
        self._statistics = model_pages.Statistics()

    async def infer(self, request: Request) -> Response:
        """Classify a batch of images."""
        _check_model(request)
        start_ns = time.monotonic_ns()
        try:
            response = await self._infer(request, start_ns)
        except (DevitError, HTTPException):
            self._statistics.note_failure(start_ns=start_ns)
            raise
        if response.status_code != 200:
            self._statistics.note_failure(start_ns=start_ns)
        return response

    async def _infer(self, request: Request, start_ns: int) -> Response:
        status = await self._node.status(_STATUS_AGE_S)
        max_bytes = max_body_bytes(status.image_shape)
        async with self._bodies.room(request, max_bytes) as room:
            wanted = await self._read(request, status.image_shape)
            room.shrink(wanted.images.nbytes)
            parsed_ns = time.monotonic_ns()
            results = await self._classify(request, wanted)
        answers = [result for result in results if isinstance(result, Answer)]
        for result in results:
            if isinstance(result, InputError):
                raise result
        if len(answers) != len(results) or any(answer.state is State.FAILED for answer in answers):
            return _failure(results)
        self._statistics.note_success(answers, start_ns=start_ns, parsed_ns=parsed_ns)
        body, json_bytes = write_response(wanted, answers, status.labels, model_pages.device_count(status))
        return _infer_response(body, json_bytes, request.headers.get("accept-encoding", ""))

    async def _read(self, request: Request, image_shape: Shape) -> InferRequest:
        max_bytes, encoding = max_body_bytes(image_shape), encoding_of(request)
        content = await self._bodies.read(request, max_bytes)

        def parse() -> InferRequest:
            plain = decompress(content, encoding, max_bytes)
            return parse_request(plain, request.headers.get("inference-header-content-length"), image_shape)

        if encoding == "identity" and len(content) < _LARGE_BYTES:
            return parse()
        async with self._parsers:
            return await to_thread.run_sync(parse)

    async def _classify(self, request: Request, wanted: InferRequest) -> list[Answer | DevitError]:
        if self._waiting >= _MAX_WAITING:
            text = f"{_MAX_WAITING} requests wait already: try again later, or use another cell"
            raise HTTPException(503, text, headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            answers = self._node.classify(list(wanted.images), mask=wanted.device_mask, policy=wanted.policy)
            return await _while_connected(request, answers)
        finally:
            self._waiting -= 1

    async def live(self, _request: Request) -> Response:
        """Whether the loops of this process turn."""
        age_s = time.monotonic() - self._node.turned_s
        if age_s > self._live_s or self._node.is_over:
            error = f"the thread of the node's client hangs for {age_s:.0f} s: restart the gateway"
            return _json({"live": False, "error": error}, status=503)
        return _json({"live": True})

    async def ready(self, _request: Request) -> Response:
        """Whether the cell gives answers now."""
        return await self._readiness({})

    async def model_ready(self, request: Request) -> Response:
        """Whether a model, by name, gives answers now."""
        _check_model(request)
        return await self._readiness({"name": MODEL})

    async def server(self, _request: Request) -> Response:
        """Describe the server."""
        return _json(model_pages.server_page(self._version))

    async def metadata(self, request: Request) -> Response:
        """Describe the model as the node does now: it may be gone, or back with another bundle."""
        _check_model(request)
        return _json(model_pages.metadata_page(await self._node.status()))

    async def config(self, request: Request) -> Response:
        """Describe the model in the form of a Triton server."""
        _check_model(request)
        return _json(model_pages.config_page(await self._node.status()))

    async def statistics(self, request: Request) -> Response:
        """Show what has been served."""
        _check_model(request)
        return _json(model_pages.statistics_page(self._statistics))

    async def metrics(self, request: Request) -> Response:
        """Show all metrics."""
        status: NodeStatus | None = None
        with suppress(LinkError):  # devit_node_up shows it
            status = await self._node.status()
        accept = request.headers.get("accept", "")
        text, content_type = write_metrics(status, self._energies(), version=self._version, accept=accept)
        return Response(text, media_type=None, headers={"content-type": content_type})

    async def _readiness(self, about: Mapping[str, str]) -> Response:
        try:
            reason = model_pages.why_not_ready(await self._node.status())
        except LinkError as err:
            reason = _line(err)
        if reason:
            return _json({**about, "ready": False, "error": reason}, status=503)
        return _json({**about, "ready": True})


def build_app(
    node: AsyncNodeClient,
    *,
    token: bytes | None,
    energies: Callable[[], tuple[MeteredEnergy, ...]],
    version: str,
    timeout_s: float,
) -> Starlette:
    """Make the application; clients must show the ``token``, if any. For the rest, see :class:`Pages`."""
    pages = Pages(node, energies, version, timeout_s)
    routes = [
        Route(OPEN_PATH, pages.live),
        Route("/readyz", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/v2", pages.server),
        Route("/v2/health/live", pages.live),
        Route("/v2/health/ready", pages.ready),
        Route("/v2/models/stats", pages.statistics),
    ]
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(model, pages.metadata),
            Route(f"{model}/ready", pages.model_ready),
            Route(f"{model}/config", pages.config),
            Route(f"{model}/stats", pages.statistics),
            Route(f"{model}/infer", pages.infer, methods=["POST"]),
        ]
    gates = [Middleware(TokenGate, token=token)] if token is not None else []
    return Starlette(
        routes=routes,
        middleware=[Middleware(CloseUnread), *gates],
        exception_handlers={HTTPException: _http_error, DevitError: _failed},
    )


def _check_model(request: Request) -> None:
    name, version = request.path_params.get("model", MODEL), request.path_params.get("version", VERSION)
    if (name, version) != (MODEL, VERSION):
        raise HTTPException(404, f"expected the model {MODEL}, version {VERSION}, found another name or version")


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Wait for something unless the client, whose body has been read, leaves: nobody wants it then."""
    asked, left = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((asked, left), return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        raise InputError("expected the client to wait for its answer, found a closed connection")
    finally:
        asked.cancel()
        left.cancel()


def _failure(results: list[Answer | DevitError]) -> Response:
    """Answer a batch in which an image failed: why, and how each image ended."""
    reasons = dict.fromkeys(_why(result) for result in results)
    reasons.pop("", None)
    states = [result.state.name.lower() if isinstance(result, Answer) else "failed" for result in results]
    failed = states.count("failed")
    text = f"expected {len(results)} answers, found {failed} failed: {'; '.join(reasons)}"
    return _json({"error": text, "states": states}, status=503)


def _why(result: Answer | DevitError) -> str:
    if isinstance(result, DevitError):
        return _line(result)
    return f"too few devices ({result.why})" if result.state is State.FAILED else ""


def _infer_response(body: bytes, json_bytes: int | None, accept_encoding: str) -> Response:
    headers = {"content-type": "application/json", "vary": "accept-encoding"}
    if json_bytes is not None:
        headers |= {"content-type": "application/octet-stream", "inference-header-content-length": str(json_bytes)}
    body, encoding = compress(body, accept_encoding)
    if encoding is not None:
        headers["content-encoding"] = encoding
    return Response(body, headers=headers)


async def _http_error(_request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    return _json({"error": err.detail}, status=err.status_code, headers=err.headers)


async def _failed(_request: Request, err: Exception) -> Response:
    return _json({"error": _line(err)}, status=400 if isinstance(err, InputError) else 503)


def _line(err: Exception) -> str:
    return " ".join(str(err).split())


def _json(page: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:  # noqa: ANN401 - what JSON can hold
    return Response(msgspec.json.encode(page), status, headers, media_type="application/json")
