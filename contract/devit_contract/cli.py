"""``devit classify`` and ``devit status``: what they take and what they print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.terminal import print_table, progress_bar

if TYPE_CHECKING:
    from devit_contract.client import Answer, Client
    from devit_contract.messages import DeviceStatus

_EVENTS_SHOWN = 8

classify_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
status_app = typer.Typer(pretty_exceptions_enable=False)

To = Annotated[
    str | None, typer.Option("--to", metavar="ENDPOINT", help="The node's client endpoint, tcp://HOST:PORT.")
]
FleetFile = Annotated[Path | None, typer.Option("--fleet", help="Fleet file with endpoint and key of the node.")]
Key = Annotated[Path | None, typer.Option("--key", help="This client's secret key file.")]
NodeKey = Annotated[str, typer.Option("--node-key", help="The node's public key, with --to.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@classify_app.command()
def classify(
    images: Annotated[list[str], typer.Argument(help="Picture files, folders of them, or - for names on stdin.")],
    to: To = None,
    fleet: FleetFile = None,
    key: Key = None,
    node_key: NodeKey = "",
    in_flight: Annotated[int, typer.Option(min=1, help="Images asked for at once.")] = 4,
    as_json: Json = False,
) -> None:
    """Ask a running cell what is in pictures."""
    import msgspec

    from devit_contract.preprocess import load_image

    paths = list(_picture_paths(images))
    with open_client(to, fleet, key, node_key) as client, progress_bar(quiet=as_json) as progress:
        status = client.status()
        # Every picture is read before the first is sent: a damaged one is named, and nothing is half done.
        pictures = [load_image(path, status.preprocess) for path in paths]
        results = []
        for path, answer in zip(paths, client.stream(pictures, in_flight=in_flight), strict=True):
            results.append(_result(path, answer))
            progress("classify", len(results), len(paths))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(results), indent=2).decode())
        return
    rows = [
        [str(r["image"]), str(r["label"]), f"{r['probability']:.1%}", str(r["state"]), f"{r['latency_ms']:.1f}"]
        for r in results
    ]
    print_table("", ["image", "class", "probability", "state", "ms"], rows, numbers=(2, 4))


@status_app.command()
def status(
    to: To = None,
    fleet: FleetFile = None,
    key: Key = None,
    node_key: NodeKey = "",
    as_json: Json = False,
) -> None:
    """Show what a fusion node knows of its devices.

    sent: frames in flight, of its credit; seen: seconds since its last message; missed: share of the frames it was
    wished for in that ended without it; p50: from dispatch to its feature.
    """
    import msgspec

    with open_client(to, fleet, key, node_key) as client:
        found = client.status()
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    frames = ", ".join(f"{count} {state}" for state, count in sorted(found.frames.items())) or "none"
    title = f"{found.bundle}: deadline {found.deadline_ms:g} ms, k_min {found.k_min}, frames ended: {frames}"
    header = ["device", "model", "state", "sent", "seen, s", "missed", "p50, ms", "engine"]
    print_table(title, header, [_device_row(device) for device in found.devices], numbers=(1, 4, 5, 6))
    for event in found.events[:_EVENTS_SHOWN]:
        typer.echo(f"{event.age_s:8.0f} s ago  {event.device}{': ' if event.device else ''}{event.text}")


def _device_row(device: DeviceStatus) -> list[str]:
    missed = sum(device.missing.values())
    wished = missed + device.answered
    middle_s = device.round_trip.quantile_s(0.5) if device.round_trip is not None else None
    return [
        device.name,
        str(device.submodel),
        device.state,
        f"{device.in_flight} of {device.credit}",
        "never" if device.last_seen_s is None else f"{device.last_seen_s:.1f}",
        f"{missed / wished:.1%}" if wished else "-",
        "-" if middle_s is None else f"{middle_s * 1000:.1f}",
        device.engine or "-",
    ]


def open_client(to: str | None, fleet: Path | None, key: Path | None, node_key: str) -> Client:
    """Open the client that the options of a command describe.

    Raises:
        InputError: The options do not say which node, or a key is missing or not usable.
    """
    from devit_contract.client import Client
    from devit_contract.errors import InputError
    from devit_contract.fleet import load_fleet, parse_endpoint
    from devit_contract.keys import check_key, load_keys

    keys = load_keys(key) if key is not None else None
    if to is not None:
        parse_endpoint(to, "--to")
        if (keys is None) != (not node_key) and fleet is None:
            raise InputError("expected --key and --node-key together, found one of them")
        if fleet is not None and not node_key:
            node_key = load_fleet(fleet).node[0].public_key
        return Client(to, keys=keys, node_key=check_key(node_key, "--node-key") if node_key else None)
    chosen = fleet or Path("fleet.toml")
    if fleet is None and not chosen.exists():
        raise InputError("expected a node to ask, found neither --to, --fleet nor ./fleet.toml: give one of them")
    return Client.of_fleet(load_fleet(chosen), keys)


def _picture_paths(names: list[str]) -> Iterator[Path]:
    from devit_contract.errors import InputError
    from devit_contract.preprocess import PICTURE_SUFFIXES

    for name in names:
        path = Path(name)
        if name == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        elif path.is_dir():
            found = sorted(child for child in path.iterdir() if child.suffix.lower() in PICTURE_SUFFIXES)
            if not found:
                raise InputError(
                    f"{path}: expected pictures ({', '.join(PICTURE_SUFFIXES)}) in this folder, found none"
                )
            yield from found
        else:
            yield path


def _result(path: Path, answer: Answer) -> dict[str, object]:
    probabilities = answer.probabilities()
    return {
        "image": str(path),
        "label": answer.label,
        "probability": float(probabilities.max()),
        "probabilities": {label: float(value) for label, value in zip(answer.labels, probabilities, strict=True)},
        "state": answer.state.name.lower(),
        "mask": answer.mask,
        "missing": answer.missing,
        "latency_ms": answer.latency_s * 1000,
        "client_ms": answer.client_us / 1000,
        "dispatch_ms": answer.wait_us / 1000,
        "collect_ms": answer.collect_us / 1000,
        "fuse_ms": answer.fuse_us / 1000,
        "devices": {
            str(timing.device): {
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
