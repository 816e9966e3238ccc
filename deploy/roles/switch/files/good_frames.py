"""Wait until devices are ready and have answered so many frames rightly; run on their node, as its client `deploy`.

A frame is good when its answer holds the device's feature, came before the deadline, and names the class that the
bundle's own features give. The golden images are asked for, each of one device alone; clients go on meanwhile.

    python good_frames.py ETC BUNDLE FRAMES DEADLINE_S DEVICE...
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.keys import load_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError, FrameFailedError, NoAnswerError
from devit_contract.wire.client import Client

_WRONG_SHARE = 0.05
"""Half precision may turn the answer to a doubtful image: so many are let pass."""


def wait_ready(client: Client, names: set[str], end_s: float) -> None:
    """Wait until the node calls every device ready.

    Raises:
        NoAnswerError: One is not in time.
    """
    while True:
        states = {device.name: device.state for device in client.status().devices if device.name in names}
        if all(state == "ready" for state in states.values()):
            return
        if time.monotonic() > end_s:
            late = ", ".join(f"{name} {state}" for name, state in sorted(states.items()) if state != "ready")
            raise NoAnswerError(f"expected {', '.join(sorted(names))} ready, found {late}: see its journal")
        client.wait(0.1)


def ask(client: Client, bundle: Bundle, name: str, submodel: int, frames: int, end_s: float) -> None:
    """Ask one device for golden images until so many answers were good.

    Raises:
        FrameFailedError: Too many are wrong or missing, or they take too long.
    """
    golden, head, mask = bundle.golden(), bundle.fusion_head(), 1 << submodel
    features = np.concatenate([golden[f"features.{device}"] for device in range(len(head.dims))], axis=1)
    expected = Fusion(head).batch_logits(features, mask).argmax(axis=1)
    good = bad = 0
    is_own = bundle.manifest.views == "own"  # its camera shows what nobody knows the class of
    pictures = itertools.cycle([None] if is_own else golden["images"])
    for answer, wanted in zip(client.stream(pictures, mask=mask, policy="all"), itertools.cycle(expected)):
        is_good = answer.logits is not None and (is_own or int(answer.logits.argmax()) == int(wanted))
        good, bad = good + is_good, bad + (not is_good)
        if good >= frames:
            return
        if bad > _WRONG_SHARE * frames or time.monotonic() > end_s:
            why = ", ".join(answer.missing.values()) or "its answers are others than the bundle's"
            raise FrameFailedError(
                f"{name}: expected {frames} good frames, found {good} and {bad} that are not ({why})"
            )


def main(etc: Path, bundle: Path, frames: int, deadline_s: float, names: list[str]) -> str:
    """Check devices one after the other; tell what was seen.

    Raises:
        DevitError: One is not good, or nobody answers.
    """
    end_s = time.monotonic() + deadline_s
    fleet, opened = load_fleet(etc / "fleet.toml"), Bundle(bundle)
    with Client.of_fleet(fleet, load_keys(etc / "keys/deploy.key_secret"), timeout_s=deadline_s) as client:
        wait_ready(client, set(names), end_s)
        for name in names:
            ask(client, opened, name, fleet.find_device(name).submodel, frames, end_s)
    return f"{', '.join(names)}: {frames} good frames each"


if __name__ == "__main__":
    words = sys.argv[1:]
    try:
        sys.stdout.write(main(Path(words[0]), Path(words[1]), int(words[2]), float(words[3]), words[4:]) + "\n")
    except DevitError as err:
        sys.exit(str(err))
