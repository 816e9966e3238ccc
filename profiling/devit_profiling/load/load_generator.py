"""The load on a cell: images from files or noise, sent with a fixed concurrency or at a fixed rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devit_contract.artefacts.preprocess import PICTURE_SUFFIXES
from devit_contract.artefacts.regular import read_regular
from devit_contract.errors import DevitError, InputError
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client, Picture
from devit_profiling.record.record import Plan

_MAX_FILES = 1000
"""Image files that are read; they are sent again and again."""


@dataclass(frozen=True)
class Sent:
    """When a request was sent, on the host's monotonic clock."""

    due_ns: int
    """When it was meant to be sent; its latency counts from here."""
    late_us: int = 0
    """How much later it was sent; 0 where each answer makes the next request due."""


Answers = Generator[tuple[Answer, Sent], None, None]
"""Each with its request."""


def send_requests(client: Client, pictures: Iterable[Picture], plan: Plan, mask: int) -> Answers:
    """Send requests as the plan says until the images end, and yield their answers.

    Raises:
        LinkError: The node does not answer, or refuses this client.
        InputError: The node refuses an image.
    """
    if plan.rate_hz is None:
        return _closed_loop(client, pictures, plan.in_flight, mask)
    return _open_loop(client, pictures, plan.rate_hz, mask)


def _closed_loop(client: Client, pictures: Iterable[Picture], in_flight: int, mask: int) -> Answers:
    """Keep a number of requests in flight: each answer makes the next request due."""
    sent: deque[Sent] = deque()  # of the requests in flight; answers come in their order

    def stamped() -> Iterator[Picture]:
        for picture in pictures:
            sent.append(Sent(time.monotonic_ns()))  # the client sends it immediately
            yield picture

    for answer in client.stream(stamped(), in_flight=in_flight, mask=mask):
        yield answer, sent.popleft()


def _open_loop(client: Client, pictures: Iterable[Picture], rate_hz: float, mask: int) -> Answers:
    """Send a request at every tick, without waiting for answers.

    A request that is late is sent immediately, and its delay noted. None is left out, or the slowest answers would be
    missing from the figures.
    """
    sent: dict[int, Sent] = {}
    start_ns = time.monotonic_ns()
    for tick, picture in enumerate(pictures):
        due_ns = start_ns + round(tick / rate_hz * 1e9)
        while (left_s := (due_ns - time.monotonic_ns()) / 1e9) > 0:
            yield from _answered(client, sent, left_s)
        late_us = (time.monotonic_ns() - due_ns) // 1000
        sent[client.submit(picture, mask=mask)] = Sent(due_ns, late_us)
        yield from _answered(client, sent, 0.0)  # also where every tick is late
    while sent:
        yield from _answered(client, sent, client.timeout_s)


def _answered(client: Client, sent: dict[int, Sent], wait_s: float) -> Iterator[tuple[Answer, Sent]]:
    # The client waits in whole milliseconds, rounded up: the last one before a tick is not waited for.
    for number, answer in client.collect(max(0.0, wait_s - 0.001)):
        request = sent.pop(number)
        if isinstance(answer, DevitError):
            raise answer
        yield answer, request


@dataclass(frozen=True)
class ImageSet:
    """Images to send in turn."""

    items: Sequence[Picture]
    origin: str
    """What they are, for the report."""

    def __iter__(self) -> Iterator[Picture]:
        """Give the images once, in order."""
        return iter(self.items)


OWN_CAMERAS = ImageSet([None], "what the devices' own cameras showed")


def random_images(shape: tuple[int, int, int], *, count: int = 32, seed: int = 0) -> ImageSet:
    """Make uint8 images ``(H, W, C)`` of even noise, the same for the same seed."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
    size = " x ".join(map(str, shape))
    return ImageSet(images, f"{count} random images of {size} (noise, seed {seed}), ready for the graph")


def load_images(paths: Sequence[Path]) -> ImageSet:
    """Read image files, to be decoded on the devices; of a folder, those with an image's suffix, sorted by name.

    Raises:
        InputError: A path is missing or unreadable, or there is no image.
    """
    files = [file for path in paths for file in _files(path)][:_MAX_FILES]
    if not files:
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"{', '.join(map(str, paths))}: no image files ({suffixes}): name some with --images")
    return ImageSet([_read(file) for file in files], f"{len(files)} image files, decoded on the devices")


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err.strerror}") from err
