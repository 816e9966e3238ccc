"""Recorded messages, handed to a scheduler as the node's ports and its handler did."""

from __future__ import annotations

import numpy as np

from devit_contract.choices import Policy
from devit_contract.wire.codec import Dtype, Kind, Message
from devit_contract.wire.words import MissingReason
from devit_fusion.devices.links import Link
from devit_fusion.frames.scheduler import Scheduler
from devit_fusion.ports.clients import Request
from devit_fusion.record.known import FeatureOrSkip
from devit_fusion.record.records import LinkChanged, RequestCame, SkipCame


def request_of(record: RequestCame, policy: Policy | None) -> Request:
    """Make a request again, perhaps with another policy; an image that was not kept is as long, and zeros."""
    picture = Message(
        Kind.REQUEST,
        Dtype(record.dtype),
        record.dims,
        record.image or bytes(record.image_bytes),
        mask=record.mask,
        run_id=record.run_id,
        frame_id=record.number,
        minor=record.minor,
    )
    asked = policy or record.policy
    return Request(record.route, record.client, picture, record.at_ns, asked, record.pixels, record.coding)


def hear(scheduler: Scheduler, link: Link, record: FeatureOrSkip, frame_id: int) -> None:
    """Have a device answer a frame, or skip it."""
    if isinstance(record, SkipCame):
        scheduler.frame_skipped(link, frame_id, record.why, is_counted=record.is_counted)
    else:
        scheduler.feature_received(link, frame_id, np.frombuffer(record.feature, "<f4"), record.timing)


def change_link(scheduler: Scheduler, link: Link, record: LinkChanged) -> None:
    """Have a device come, go, or run another engine."""
    if record.change == "engine" and record.hello is not None:
        link.change_engine(record.hello, record.engine_revision)
    elif record.change == "leaving":
        link.is_leaving = True
    elif record.change == "lost":
        link.disconnect()
        scheduler.lose(link, MissingReason.ABSENT)
    elif record.hello is not None:
        link.connect(record.hello, record.boot_id, record.engine_revision)
        is_restarted = record.change == "restarted"
        scheduler.lose(link, MissingReason.RESTARTED if is_restarted else MissingReason.RECONNECTED)
