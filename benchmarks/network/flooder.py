"""A client that floods a cell on request: keeps many requests under way, whatever becomes of them.

python -m benchmarks.network.flooder FLEET KEY IN_FLIGHT POLICY PICTURE

``PICTURE`` is a ``.npy`` file of an image, or a picture file. Each line on standard input begins a flood, the next line
ends it; then a line of JSON says how many requests ended how.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.keys import load_keys
from devit_contract.choices import Policy
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client, Picture

_PATIENCE_S = 10.0


def main(fleet: str, key: str, in_flight: str, policy: Policy, picture: str) -> None:
    """Serve lines until standard input ends."""
    path = Path(picture)
    content: Picture = np.load(path) if path.suffix == ".npy" else path.read_bytes()
    with Client.of_fleet(load_fleet(Path(fleet)), load_keys(Path(key)), timeout_s=_PATIENCE_S) as client:
        client.status()
        _say({})
        while sys.stdin.readline():
            start_s = time.monotonic()
            found = _flood(client, content, policy, int(in_flight))
            _say(found | {"seconds": time.monotonic() - start_s})
            sys.stdin.readline()


def _flood(client: Client, picture: Picture, policy: Policy, in_flight: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    under_way = 0
    end_s = float("inf")
    while under_way or end_s > time.monotonic() + _PATIENCE_S:
        if end_s == float("inf") and select.select([0], [], [], 0)[0]:
            end_s = time.monotonic() + _PATIENCE_S
        while end_s == float("inf") and under_way < in_flight:
            client.submit(picture, policy=policy)
            under_way += 1
        for _, answer in client.collect(0.05):
            under_way -= 1
            ended = answer.shed or answer.state.name.lower() if isinstance(answer, Answer) else "error"
            found[ended] += 1
    return dict(found)


def _say(found: dict[str, float]) -> None:
    print(json.dumps(found), flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
