"""LitServe's interface for a model; apart, because it can only be imported where LitServe is installed.

Annotations must be real types here: LitServe compares that of a request with FastAPI's class, to find out that the body
is JSON, and takes a string for the name of a parameter of the query.
"""

import base64

import litserve
from benchmarks.peers.litserve_cell import Front, Worker
from fastapi import Request


class Api(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """Serves bytes."""

    def __init__(self, role: Worker | Front) -> None:
        """Keep what makes the model."""
        super().__init__()
        self._role = role

    def setup(self, device: str) -> None:
        """Make the model; which device it is for does not matter."""
        self._ask = self._role.make()

    def decode_request(self, request: Request) -> bytes:
        """Read a request, which LitServe gives as what the JSON says."""
        return base64.b64decode(request["content"])

    def predict(self, inputs: bytes) -> bytes:
        """Answer it."""
        return self._ask(inputs)

    def encode_response(self, output: bytes) -> dict[str, str]:
        """Write the answer."""
        return {"content": base64.b64encode(output).decode()}
