"""An answer as its client sees it: class, state, devices, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array
from devit_contract.choices import Policy
from devit_contract.errors import FrameFailedError
from devit_contract.printable import printable
from devit_contract.wire.codec import Message, State
from devit_contract.wire.messages import AnswerBody, DeviceTiming
from devit_contract.wire.words import MissingReason, ShedReason

SHED_TEXTS: dict[str, str] = {
    ShedReason.MAX_IN_FLIGHT: "more are under way than max_in_flight of this client in the node's fleet.toml",
    ShedReason.QUEUE: "more wait than queue in the node's fleet.toml, most of them of this client",
    ShedReason.BYTES: "more than 12 MiB of pictures wait at the node, most of them of this client",
    ShedReason.SHARE: "the node's queue is full, and this client had more than its share: see weight in fleet.toml",
    ShedReason.DEADLINE: "no device could answer within deadline_ms of the node's fleet.toml any more",
    ShedReason.STANDBY: "another node of the fleet is active now",
}
"""By reason: which limit it was, and where to change it."""


@dataclass(frozen=True)
class Answer:
    """One classified image."""

    state: State
    mask: int
    """Bit i is set where device i's feature is in the answer."""
    logits: Float32Array | None
    """Shape ``(K,)``; ``None`` if the frame failed."""
    latency_s: float
    """From the request to its answer, on the client's clock."""
    devices: tuple[DeviceTiming, ...]
    missing: dict[int, MissingReason]
    wait_us: int
    """At the node: from the request's arrival to its dispatch."""
    collect_us: int
    """At the node: from dispatch to the last feature or the deadline."""
    fuse_us: int
    policy: Policy = "all"
    """By which devices were asked."""
    asked: int = 0
    """Bit i is set where device i was sent the image; 0 from an older node."""
    score: float | None = None
    """How certain the answer is, in standard deviations of its closest rival; ``None`` where that was not tested."""
    threshold: float | None = None
    """The score from which on it is certain."""
    novelty: float | None = None
    """How unlike the validation images it is, as a quantile of these; 1 is unlike any."""
    shed: str = ""
    """Why the node did not serve the request, as the word of a ``ShedReason``; empty if it did."""
    labels: tuple[str, ...] = ()
    """Names of the classes; empty if the client has not asked the node for them yet."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Device index to the device's name; empty as ``labels`` is."""

    @property
    def client_us(self) -> int:
        """Time that the node does not account for: in the client, and on the way to the node and back."""
        return max(0, round(self.latency_s * 1e6) - self.wait_us - self.collect_us - self.fuse_us)

    @property
    def devices_asked(self) -> int:
        """How many devices were sent the image; of an older node, how many are in the answer."""
        return self.asked.bit_count() or self.mask.bit_count()

    @property
    def why(self) -> str:
        """Why the request was not served, or devices are missing, in one line; empty if none is."""
        if self.shed:
            return SHED_TEXTS.get(self.shed, f"the node is overloaded: {printable(self.shed)}")
        return ", ".join(f"{self.name_of(device)}: {reason}" for device, reason in sorted(self.missing.items()))

    def name_of(self, device: int) -> str:
        """Name a device by its index, as the fleet does."""
        return self.names.get(device, f"device {device}")

    @property
    def label(self) -> str:
        """Name of the class with the largest logit.

        Raises:
            FrameFailedError: The frame failed, so there is none.
        """
        best = int(self.probabilities().argmax())
        return self.labels[best] if self.labels else str(best)

    def probabilities(self) -> Float32Array:
        """Softmax of the logits, shape ``(K,)``.

        Raises:
            FrameFailedError: The frame failed, so there are none.
        """
        if self.logits is None:
            raise FrameFailedError(f"too few devices answered, so this frame failed ({self.why}): see devit status")
        shifted = np.exp(self.logits - self.logits.max())
        return np.asarray(shifted / shifted.sum(), np.float32)

    @classmethod
    def of(
        cls,
        message: Message,
        content: AnswerBody,
        latency_s: float,
        labels: tuple[str, ...],
        names: Mapping[int, str],
    ) -> Answer:
        """Put header and body of an ANSWER together."""
        logits: npt.NDArray[Any] | None = np.frombuffer(content.logits, "<f4") if content.logits else None
        return cls(
            state=message.state,
            mask=message.mask,
            logits=logits,
            latency_s=latency_s,
            devices=content.devices,
            missing=content.missing,
            wait_us=content.wait_us,
            collect_us=content.collect_us,
            fuse_us=content.fuse_us,
            policy=content.policy,
            asked=content.asked,
            score=content.score,
            threshold=content.threshold,
            novelty=content.novelty,
            shed=content.shed,
            labels=labels,
            names=names,
        )
