"""The pages: inference, metadata, health, metrics; every error is JSON with one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

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
from devit_contract.wire.messages import NodeStatus
from devit_gateway import model_pages
from devit_gateway.access import OPEN_PATH, TokenGate
from devit_gateway.bodies import BodyReader, compress
from devit_gateway.exposition import write_metrics
from devit_gateway.infer_request import max_body_bytes, parse_request
from devit_gateway.infer_response import MODEL, VERSION, write_response
from devit_gateway.joules import MeteredEnergy
from devit_gateway.node_client import AsyncNodeClient

_STATUS_AGE_S = 1.0
"""How old the node's state may be before an inference, which fails on its own if the node has gone."""
_LARGE_BYTES = 256 * 1024
"""Larger bodies are parsed in a thread, so that other requests do not wait."""


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
        room = self._bodies.reserve(request, max_bytes)
        try:
            content = await self._bodies.read(request, max_bytes)
            about = request.headers.get("inference-header-content-length"), status.image_shape
            if len(content) < _LARGE_BYTES:
                wanted = parse_request(content, *about)
            else:
                wanted = await to_thread.run_sync(parse_request, content, *about)
            parsed_ns = time.monotonic_ns()
            results = await self._node.classify(list(wanted.images), mask=wanted.device_mask)
        finally:
            self._bodies.release(room)
        answers = [result for result in results if isinstance(result, Answer)]
        for result in results:
            if isinstance(result, InputError):
                raise result
        if len(answers) != len(results) or any(answer.state is State.FAILED for answer in answers):
            return _failure(results)
        self._statistics.note_success(answers, start_ns=start_ns, parsed_ns=parsed_ns)
        body, json_bytes = write_response(wanted, answers, status.labels, model_pages.device_count(status))
        return _infer_response(body, json_bytes, request.headers.get("accept-encoding", ""))

    async def live(self, _request: Request) -> Response:
        """Whether the loops of this process turn."""
        age_s = time.monotonic() - self._node.turned_s
        if age_s > self._live_s or self._node.is_over:
            raise HTTPException(503, f"the thread of the node's client hangs for {age_s:.0f} s: restart the gateway")
        return Response()

    async def ready(self, _request: Request) -> Response:
        """Whether the cell gives answers now."""
        reason = model_pages.why_not_ready(await self._node.status())
        if reason:
            raise HTTPException(503, reason)
        return Response()

    async def model_ready(self, request: Request) -> Response:
        """Whether a model, by name, gives answers now."""
        _check_model(request)
        return await self.ready(request)

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
    return Starlette(
        routes=routes,
        middleware=[Middleware(TokenGate, token=token)] if token is not None else [],
        exception_handlers={HTTPException: _http_error, DevitError: _failed},
    )


def _check_model(request: Request) -> None:
    name, version = request.path_params.get("model", MODEL), request.path_params.get("version", VERSION)
    if (name, version) != (MODEL, VERSION):
        raise HTTPException(404, f"expected the model {MODEL}, version {VERSION}, found another name or version")


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
