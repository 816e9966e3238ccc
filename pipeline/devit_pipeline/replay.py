"""A recording of a node, replayed with a bundle: the recorded features, or those of the bundle's own submodels."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.manifest import Bundle, Manifest
from devit_contract.artefacts.preprocess import decode_coded, decode_image
from devit_contract.choices import Policy
from devit_contract.errors import InputError
from devit_contract.wire.codec import Dtype, Message
from devit_engines.engine import EngineSpec
from devit_engines.ort import OrtEngine
from devit_fusion.record.changes import Changes
from devit_fusion.record.file import Recording
from devit_fusion.record.records import Record, Snapshot, Start
from devit_fusion.record.replay import Replay
from devit_fusion.record.stand_ins import WholeFusion
from devit_fusion.record.verdict import Comparison, Limits, Tally


def replay(
    path: Path,
    *,
    bundle: Path | None = None,
    policy: Policy | None = None,
    without: tuple[str, ...] = (),
    labels: Path | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    real_time: bool = False,
) -> Comparison:
    """Run a recording, a file or a folder of them, through the scheduler and the head of a bundle.

    Raises:
        InputError: Recording, bundle or labels are not usable, or do not fit together.
    """
    recording = Recording(path)
    records = iter(recording)
    start = next(records, None)
    if not isinstance(start, Start):
        raise InputError(f"{path}: expected a recording of a node, found no start")
    opened = Bundle(bundle or _folder_of(start, path))
    manifest = opened.manifest
    seen: list[Record] = [start]
    for record in records:
        seen.append(record)
        if isinstance(record, Snapshot):
            break
    others = _others(start, manifest)
    _check_fit(start, seen[-1], manifest, others, opened.folder)
    head = opened.fusion_head()
    known = None if labels is None else read_labels(labels, manifest.labels)
    tally = Tally(known)
    with features_of(opened) as compute:
        changes = Changes(policy, _devices(start, without), compute, others)
        run = Replay(
            manifest,
            lambda: WholeFusion(head),
            opened.calibration(),
            changes,
            digest=None if known is None else _digest,
            real_time=real_time,
        )
        for pair in run.run(chain(seen, records)):
            tally.add(pair)
    return tally.compare(run.counts, recording.damage, limits)


def read_labels(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Read a CSV of two columns: a request's number or its image's SHA-256, and its class by name or index."""
    found: dict[str, int] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    for number, row in enumerate(csv.reader(lines), 1):
        if not row:
            continue
        label = row[1].strip() if len(row) == 2 else ""
        if label not in names and not (label.isdigit() and int(label) < len(names)):
            raise InputError(f"{path}: line {number}: expected KEY,LABEL with a class of the bundle, found {row}")
        found[row[0].strip()] = names.index(label) if label in names else int(label)
    return found


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def _folder_of(start: Start, path: Path) -> Path:
    folder = Path(start.bundle_folder)
    if not folder.is_dir():
        raise InputError(f"{path}: recorded with bundle {start.bundle}, which is not in {folder} here: give --bundle")
    return folder


def _others(start: Start, manifest: Manifest) -> frozenset[int]:
    """Find the submodels of which the recording's bundle had no graph of this one."""
    recorded = set(start.digests.values())
    return frozenset(
        index
        for index in range(len(manifest.submodels))
        if not any(
            file.role == "submodel" and file.device == index and file.sha256 in recorded for file in manifest.files
        )
    )


def _devices(start: Start, names: tuple[str, ...]) -> frozenset[int]:
    return frozenset(start.fleet.find_device(name).submodel for name in names)


def _check_fit(start: Start, first: Record, manifest: Manifest, others: frozenset[int], folder: Path) -> None:
    count = len(manifest.submodels)
    last = max(device.submodel for device in start.fleet.device)
    if last >= count:
        raise InputError(f"bundle {folder}: expected submodels 0 to {last} as in the recording, found {count}")
    for link in first.links if isinstance(first, Snapshot) else ():
        dim = manifest.submodels[link.device].output_dim
        if link.hello is not None and link.device not in others and link.hello.feature_dim != dim:
            text = f"expected features of {link.hello.feature_dim} from submodel {link.device}, found {dim}"
            raise InputError(f"bundle {folder}: {text}: give the bundle of the recording, or another one's --bundle")


@contextmanager
def features_of(bundle: Bundle) -> Iterator[Callable[[int, Message], Float32Array | None]]:
    """Compute features on this machine's CPU, each submodel loaded when it is needed first."""
    manifest, spec = bundle.manifest, bundle.manifest.preprocess
    with ExitStack() as stack:
        engines: dict[int, OrtEngine] = {}

        def compute(device: int, picture: Message) -> Float32Array | None:
            if picture.dtype is Dtype.NONE or not len(picture.payload):  # the devices' own cameras
                return None
            if device not in engines:
                named = EngineSpec(f"submodel {device}", spec.shape, manifest.submodels[device].output_dim)
                content = bundle.read("submodel", device=device, variant="fp32")
                engines[device] = stack.enter_context(OrtEngine(content, named))
            if picture.is_file:
                image = decode_image(picture.payload, spec, "request")
            elif picture.dtype is Dtype.ENCODED:
                image = decode_coded(picture.payload, spec, "request")
            else:
                image = np.asarray(picture.array(), np.uint8)
            if image.shape != spec.shape:
                raise InputError(
                    f"bundle {bundle.folder}: expected images {spec.shape}, the recording has {image.shape}"
                )
            feature: Float32Array = engines[device].features(image[None])[0]
            return feature

        yield compute
