"""The commands ``devit classify`` and ``devit status``."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.choices import Policy
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_table, progress_bar, tell

if TYPE_CHECKING:
    from devit_contract.artefacts.manifest import Preprocess
    from devit_contract.wire.client import Answer, Client, Picture
    from devit_contract.wire.status import ClientStatus, DeviceStatus, NodeStatus, NodeView, PromiseStatus

_EVENTS_SHOWN = 8
_OUTCOMES = ("full", "certain", "partial", "failed", "shed")

classify_app = Application(no_args_is_help=True)
status_app = Application()

To = Annotated[
    str | None, typer.Option("--to", metavar="ENDPOINT", help="The node's client endpoint, tcp://HOST:PORT.")
]
FleetFile = Annotated[Path | None, typer.Option("--fleet", help="Fleet file with endpoint and key of the node.")]
Key = Annotated[Path | None, typer.Option("--key", help="This client's secret key file.")]
NodeKey = Annotated[str, typer.Option("--node-key", help="The node's public key, with --to.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeepNovel = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Copy pictures that are unlike 99 % of the validation images to this folder."),
]


@classify_app.command()
def classify(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Picture files, folders of them, patterns such as 'day/*.jpg', or - for names on stdin."),
    ] = None,
    own: Annotated[
        int, typer.Option("--own", min=0, help="Have the devices use their own cameras that many times.")
    ] = 0,
    to: To = None,
    fleet: FleetFile = None,
    key: Key = None,
    node_key: NodeKey = "",
    in_flight: Annotated[int, typer.Option(min=1, help="Images in flight.")] = 4,
    policy: Annotated[
        Policy | None, typer.Option("--policy", help="Which devices to ask; default: as fleet.toml of the node says.")
    ] = None,
    keep_novel: KeepNovel = None,
    as_json: Json = False,
) -> None:
    """Ask a running cell to classify pictures, or what its devices see.

    Ends with exit code 1 if a picture can't be read, or an image got no answer, after showing the others.
    """
    from devit_contract.errors import DevitError, InputError
    from devit_contract.wire import novel

    if bool(images) == bool(own):
        raise InputError("give either pictures or --own COUNT")
    if own and keep_novel is not None:
        raise InputError("--keep-novel copies picture files: give pictures instead of --own")
    paths = list(picture_paths(images or []))
    names = [str(path) for path in paths] or [f"own {number}" for number in range(1, own + 1)]
    answers: list[Answer] = []
    unread: dict[int, str] = {}
    lost: DevitError | None = None
    with open_client(to, fleet, key, node_key) as client, progress_bar(quiet=as_json) as progress:
        status = client.status()
        try:
            pictures = _pictures(paths, own, status.preprocess, unread)
            for answer in client.stream(pictures, in_flight=in_flight, policy=policy):
                answers.append(answer)
                progress("classify", len(answers) + len(unread), len(names))
        except DevitError as err:  # raised below what has been answered until then
            lost = err
    asked = [place for place in range(len(names)) if place not in unread]
    results = {place: _unread(names[place], why) for place, why in unread.items()}
    results |= {place: _result(names[place], answer) for place, answer in zip(asked, answers, strict=False)}
    in_order = [results[place] for place in sorted(results)]
    if as_json:
        print_json(in_order)
    elif in_order:
        is_staged = any(answer.policy != "all" for answer in answers)
        rows = [_answer_row(result, is_staged=is_staged) for result in in_order]
        print_table("", ["image", "class", "probability", "state", "ms"], rows, numbers=(2, 4))
    if lost is not None:
        raise lost
    if keep_novel is not None and answers:
        files = [paths[place] for place in asked]
        novel.keep_novel(zip(files, [answer.novelty for answer in answers], strict=False), keep_novel)
    _raise_unless_whole(answers, [f"{names[place]}: {why}" for place, why in unread.items()])


def _pictures(paths: list[Path], own: int, spec: Preprocess, unread: dict[int, str]) -> Iterator[Picture]:
    """Read one picture after the other; of one that can't be read, keep its place and why not."""
    from devit_contract.artefacts.preprocess import load_image
    from devit_contract.errors import InputError

    for place, path in enumerate(paths):
        try:
            picture = load_image(path, spec)
        except InputError as err:
            unread[place] = str(err).removeprefix(f"{path}: ")
        else:
            yield picture
    yield from [None] * own


def _raise_unless_whole(answers: list[Answer], unread: list[str]) -> None:
    from devit_contract.errors import FrameFailedError, InputError

    failed = [answer for answer in answers if answer.logits is None]
    said = f"{len(unread)} of {len(unread) + len(answers)} pictures were not read ({unread[0]})" if unread else ""
    if failed:
        why = f"{len(failed)} of {len(answers)} images have no answer ({failed[0].why}): see devit status"
        raise FrameFailedError(f"{said}; {why}" if said else why)
    if unread:
        raise InputError(said)


@status_app.command()
def status(
    to: To = None,
    fleet: FleetFile = None,
    key: Key = None,
    node_key: NodeKey = "",
    as_json: Json = False,
) -> None:
    """Show what a fusion node knows of its devices.

    sent: frames in flight, of its credit; seen: seconds since its last message; missed: share of the requested frames
    that it did not answer in time, though the load was not too much; p50: from dispatch to its feature.

    Of clients: shed are those of the failed frames that were not served, for which a line below says why; time: what
    its frames took of the devices.
    """
    with open_client(to, fleet, key, node_key) as client:
        found = client.status()
    if as_json:
        print_json(found)
        return
    frames = ", ".join(f"{count} {state}" for state, count in sorted(found.frames.items())) or "none"
    title = (
        f"{found.bundle}: deadline {found.deadline_ms:g} ms, min_devices {found.min_devices}, policy {found.policy}, "
        f"frames ended: {frames}"
    )
    rows = [_device_row(device) for device in found.devices]
    rows += [["-", str(submodel), "no device", "-", "-", "-", "-", "-"] for submodel in found.without_device]
    header = ["device", "model", "state", "sent", "seen, s", "missed", "p50, ms", "engine"]
    print_table(title, header, rows, numbers=(1, 4, 5, 6))
    for node in found.nodes:
        typer.echo(_node_line(node))
    clients = [client for client in found.clients if client.frames or client.waiting or client.in_flight]
    if clients:
        header = ["client", "waiting", "sent", *_OUTCOMES, "time, s"]
        print_table("", header, [_client_row(client) for client in clients], numbers=range(1, 4 + len(_OUTCOMES)))
    for line in _notes(found):
        typer.echo(line)
    for event in found.events[:_EVENTS_SHOWN]:
        typer.echo(f"{event.age_s:8.0f} s ago  {event.device}{': ' if event.device else ''}{event.text}")


def _notes(found: NodeStatus) -> Iterator[str]:
    """Say below the tables what is out of the ordinary, or was asked for."""
    yield from filter(None, map(_shed_line, found.clients))
    if found.asked:
        counts = ", ".join(f"{asked}: {count}" for asked, count in sorted(found.asked.items()))
        yield f"frames by devices asked: {counts}"
    if lacking := ", ".join(device.name for device in found.devices if device.lacks_source):
        yield f"without a camera, though this bundle wants one on each device: {lacking}: set source in agent.toml"
    if over_current := _over_current_line(found.devices):
        yield over_current
    yield from (_slow_line(device) for device in found.devices if device.slowdowns)
    if found.promise is not None and (found.promise.audited or found.promise.is_broken):
        yield _promise_line(found.promise)
    if found.image_choice != "raw":
        yield _images_line(found)
    heads = found.heads
    if heads.computed:
        size = f"{heads.kept} kept, {heads.kept_bytes / 1e6:.1f} MB"
        yield f"subset heads: {heads.computed} computed, {size}, {heads.waiting} frames wait for one"
    if found.fleet is not None and found.fleet.problem:
        yield f"fleet.toml is not used as it is: {found.fleet.problem}"
    if found.fleet is not None and found.fleet.needs_restart:
        yield f"restart fusion-node to apply {', '.join(found.fleet.needs_restart)} of fleet.toml"


def _shed_line(client: ClientStatus) -> str:
    told = ", ".join(f"{count} {why}" for why, count in sorted(client.shed.items()))
    limit = f"{client.max_in_flight} in flight" if client.max_in_flight else "no limit in flight"
    name = client.name or "(no key)"
    return f"{name} was not served: {told}; it has weight {client.weight}, {limit} in fleet.toml" if told else ""


def _node_line(node: NodeView) -> str:
    granted = f", granted by {', '.join(node.granted)}" if node.granted else ""
    since = f" for {node.since_s:.0f} s" if node.since_s is not None else ""
    return f"node {node.name}: {node.state}{since}, run {node.run_id:016x}{granted}"


def _over_current_line(devices: Sequence[DeviceStatus]) -> str:
    counted = [(device.name, device.over_current) for device in devices if device.over_current is not None]
    told = "; ".join(f"{name} {events}" for name, events in counted if events.total)
    return f"over-current events since the agent's start: {told}: see devit doctor there" if told else ""


def _slow_line(device: DeviceStatus) -> str:
    """Say why a device is slower than it could be, with what its board says."""
    told, figures = device.throttling, ""
    if told is not None:
        mark = ", SIMULATED" if told.is_simulated else ""
        figures = f" ({told.alerts} throttle alerts, clocks at {told.clock_share:.0%} of the power mode's{mark})"
    return f"{device.name} slows down, others are asked before it: {', '.join(device.slowdowns)}{figures}"


def _images_line(found: NodeStatus) -> str:
    times = [
        (device.name, f"{coding} {us / 1000:.1f}") for device in found.devices for coding, us in device.image_us.items()
    ]
    measured = ", ".join(f"{name} {text}" for name, text in times) or "none yet"
    return (
        f"images: {found.images} now, as {found.image_choice} in fleet.toml; ms from the node to the engine: {measured}"
    )


def _promise_line(promise: PromiseStatus) -> str:
    found = f"{promise.flipped} of {promise.audited} audited answers flipped, {promise.flip_rate_bound:.2%} at most"
    kept = "BROKEN, so that all devices are asked" if promise.is_broken else "kept"
    return f"promise of {promise.flips:.2%} flips: {kept}; {found}"


def _device_row(device: DeviceStatus) -> list[str]:
    from devit_contract.wire.words import MissingReason

    not_its_own = MissingReason.OVERLOAD, MissingReason.FUSION
    missed = sum(count for why, count in device.missing.items() if why not in not_its_own)
    requested = missed + device.answered
    middle_s = device.round_trip.quantile_s(0.5) if device.round_trip is not None else None
    return [
        device.name,
        str(device.submodel),
        _shown_state(device),
        f"{device.in_flight} of {device.credit}",
        "never" if device.last_seen_s is None else f"{device.last_seen_s:.1f}",
        f"{missed / requested:.1%}" if requested else "-",
        "-" if middle_s is None else f"{middle_s * 1000:.1f}",
        device.engine or "-",
    ]


def _shown_state(device: DeviceStatus) -> str:
    from devit_contract.wire.words import DeviceState

    if device.is_revoked or device.is_suspect:
        return "revoked" if device.is_revoked else "suspect"
    return "spare" if device.is_spare and device.state is DeviceState.READY else device.state


def _client_row(client: ClientStatus) -> list[str]:
    counts = [client.frames.get(outcome, 0) for outcome in _OUTCOMES]
    numbers = client.waiting, client.in_flight, *counts
    return [client.name or "(no key)", *map(str, numbers), f"{client.device_s:.1f}"]


def open_client(to: str | None, fleet: Path | None, key: Path | None, node_key: str) -> Client:
    """Open the client that the options of a command describe.

    Raises:
        InputError: The options do not say which node, or a key is missing or not usable.
    """
    from devit_contract.artefacts.fleet import load_fleet, parse_endpoint
    from devit_contract.artefacts.keys import check_key, load_keys
    from devit_contract.errors import InputError
    from devit_contract.wire.client import Client

    keys = load_keys(key) if key is not None else None
    if to is not None:
        parse_endpoint(to, "--to")
        if (keys is None) != (not node_key) and fleet is None:
            raise InputError("give --key and --node-key together")
        if fleet is not None and not node_key:
            node_key = load_fleet(fleet).node.public_key
        public = check_key(node_key, "--node-key") if node_key else None
        return Client(to, keys=keys, node_key=public, tell=tell)
    chosen = fleet or Path("fleet.toml")
    if fleet is None and not chosen.exists():
        raise InputError("no node is given: give --to or --fleet, or run this where fleet.toml is")
    return Client.of_fleet(load_fleet(chosen), keys, tell=tell)


def picture_paths(names: list[str]) -> Iterator[Path]:
    """List the pictures of files, folders, patterns, or with ``-`` of standard input.

    Raises:
        InputError: A folder holds none, or a pattern matches none.
    """
    from devit_contract.artefacts.preprocess import PICTURE_SUFFIXES
    from devit_contract.errors import InputError

    for name in names:
        path = Path(name)
        if name == "-":
            listed = [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()]
            if not listed:
                raise InputError("-: no names of pictures on standard input: write one a line")
            yield from listed
        elif path.is_dir():
            found = sorted(child for child in path.iterdir() if child.suffix.lower() in PICTURE_SUFFIXES)
            if not found:
                raise InputError(f"{path}: no pictures ({', '.join(PICTURE_SUFFIXES)}) in this folder")
            yield from found
        elif not path.exists() and any(character in name for character in "*?["):
            # Path.glob accepts no absolute pattern.
            matching = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207
            if not matching:
                raise InputError(f"{name}: no pictures match this pattern")
            yield from matching
        else:
            yield path


def _result(name: str, answer: Answer) -> dict[str, object]:
    probabilities = answer.probabilities().tolist() if answer.logits is not None else []
    return {
        "image": name,
        "label": answer.label if probabilities else None,
        "probability": max(probabilities, default=None),
        "probabilities": dict(zip(answer.labels, probabilities, strict=True)) if probabilities else {},
        "state": answer.state.name.lower(),
        "policy": answer.policy,
        "devices_asked": answer.devices_asked,
        "score": answer.score,
        "threshold": answer.threshold,
        "novelty": answer.novelty,
        "mask": answer.mask,
        "missing": answer.missing,
        "why": answer.why,
        "latency_ms": answer.latency_s * 1000,
        "client_ms": answer.client_us / 1000,
        "dispatch_ms": answer.wait_us / 1000,
        "collect_ms": answer.collect_us / 1000,
        "fuse_ms": answer.fuse_us / 1000,
        "devices": {
            str(timing.device): {
                "name": answer.name_of(timing.device),
                "network_ms": timing.network_us / 1000,
                "queue_ms": timing.queue_us / 1000,
                "decode_ms": timing.decode_us / 1000,
                "engine_ms": timing.inference_us / 1000,
                "arrival_ms": timing.arrival_us / 1000,
                "wait_ms": max(0, answer.collect_us - timing.arrival_us) / 1000,
                "capture_age_ms": timing.capture_age_us / 1000,
            }
            for timing in answer.devices
        },
    }


def _unread(name: str, why: str) -> dict[str, object]:
    nothing = dict.fromkeys(("label", "probability", "devices_asked", "mask", "latency_ms"))
    return {"image": name, **nothing, "probabilities": {}, "state": f"not read: {why}"}


def _answer_row(result: dict[str, object], *, is_staged: bool) -> list[str]:
    """Show one answer; how many devices it asked, where not every frame asks all."""
    probability = "-" if result["probability"] is None else f"{result['probability']:.1%}"
    latency = "-" if result["latency_ms"] is None else f"{result['latency_ms']:.1f}"
    has_asked = is_staged and result["devices_asked"] is not None
    state = f"{result['state']}, {result['devices_asked']}" if has_asked else result["state"]
    shown = result["image"], result["label"] or "-", probability, state, latency
    return [str(each) for each in shown]
