"""The node's status and its devices' as metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import get_args

from msgspec.structs import asdict
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from devit_contract.errors import ClientFault, DeviceFault
from devit_contract.wire.codec import State
from devit_contract.wire.status import ClientStatus, DeviceStatus, Histogram, NodeStatus, PromiseStatus
from devit_contract.wire.words import NEVER_ASKED, DeviceState, MissingReason, ShedReason, Slowdown
from devit_gateway.joules import MeteredEnergy

_OPEN_METRICS = "application/openmetrics-text"
# A counter that is not there before its first event hides that event from increase().
_OUTCOMES = (*(state.name.lower() for state in State if state is not State.NONE), "shed")
_CAUSES = tuple(reason for reason in MissingReason if reason not in NEVER_ASKED)
_REJECTIONS = (
    *("late", "duplicate"),
    *get_args(DeviceFault),
    *(
        MissingReason.SHAPE,
        MissingReason.DEVICE,
        MissingReason.ENGINE,
        MissingReason.NONFINITE,
        MissingReason.IMPLAUSIBLE,
    ),
)
_HISTOGRAMS = {
    "round_trip": ("devit_device_rtt_seconds", "From a frame's dispatch to its feature's arrival at the node."),
    "inference": ("devit_agent_inference_seconds", "In a device's engine, one frame."),
    "queue": ("devit_agent_queue_seconds", "From an agent's reading a frame to its starting on it."),
}


def write_metrics(
    status: NodeStatus | None, energies: Sequence[MeteredEnergy], *, version: str, accept: str = ""
) -> tuple[bytes, str]:
    """Write all metrics of a node, if it answers, and of the gateway, whose ``version`` this is; give their type too.

    They are in OpenMetrics if the header ``Accept`` names that, else in the plain format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(status, energies, version))
    write, content_type = choose_encoder(_OPEN_METRICS if _OPEN_METRICS in accept else "text/plain")
    return write(registry), content_type


class NodeCollector(Collector):
    """The metrics of one scrape."""

    def __init__(self, status: NodeStatus | None, energies: Sequence[MeteredEnergy], version: str) -> None:
        """Keep the values to write."""
        self._status = status
        self._energies = energies
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; those of the node only if it answers."""
        status, build = self._status, {"version": self._version}
        if status is not None:
            build |= {"node_version": status.software, "bundle": status.bundle}
        yield InfoMetricFamily("devit_build", "What runs here.", value=build)
        yield GaugeMetricFamily("devit_node_up", "Whether the fusion node answers.", value=float(status is not None))
        if self._energies:
            yield _counter(
                "devit_device_energy_joules",
                "Energy of a device while this gateway had it sampled, all rails of its total.",
                ("device", "scope", "simulated"),
                {(e.device, e.scope, "true" if e.is_simulated else "false"): e.energy_j for e in self._energies},
            )
        if status is not None:
            yield from _node(status)
            yield from _devices(status.devices)
            yield from _clients(status.clients)


def _node(status: NodeStatus) -> Iterator[Metric]:
    frames = dict.fromkeys(_OUTCOMES, 0) | _outcomes(status.frames)
    yield _counter("devit_frames", "Frames that have ended.", ("outcome",), {(key,): n for key, n in frames.items()})
    if status.frame_time is not None:
        text = "From a request's arrival at the node to its answer."
        yield _histogram("devit_frame_duration_seconds", text, (), {(): status.frame_time})
    yield _counter(
        "devit_wire_bytes",
        "Bytes of messages at the node.",
        ("direction",),
        {(direction,): n for direction, n in status.wire_bytes.items()},
    )
    text = "Connections without an allowed key, and false names."
    yield CounterMetricFamily("devit_auth_failures", text, value=status.refused_handshakes + status.unknown_peers)
    yield _counter(
        "devit_requests_refused",
        "Invalid messages of clients.",
        ("reason",),
        {(why,): n for why, n in (dict.fromkeys(get_args(ClientFault), 0) | status.refused_requests).items()},
    )
    text = "Connections shut because their message did not end."
    yield CounterMetricFamily("devit_floods", text, value=status.floods)
    text = "Frames that have ended, by the number of devices that they asked."
    asked = dict.fromkeys(range(len(status.devices) + 1), 0) | status.asked
    yield _counter("devit_frames_asked", text, ("devices",), {(str(count),): n for count, n in asked.items()})
    yield from _promise(status.promise)
    yield GaugeMetricFamily("devit_frames_open", "Frames that have not ended.", value=status.open_frames)
    yield GaugeMetricFamily("devit_requests_waiting", "Requests that wait for a device.", value=status.waiting_requests)
    yield GaugeMetricFamily("devit_node_uptime_seconds", "Since the node's start.", value=status.uptime_s)
    yield GaugeMetricFamily("devit_devices_needed", "Fewest ready devices that give answers.", value=status.min_devices)


def _promise(promise: PromiseStatus | None) -> Iterator[Metric]:
    """Give what checking certain answers has shown; nothing where none can be certain."""
    if promise is None:
        return
    text = "Certain answers that all devices checked afterwards."
    yield CounterMetricFamily("devit_answers_audited", text, value=promise.audited)
    text = "Those of them that differ from that of all devices."
    yield CounterMetricFamily("devit_answers_flipped", text, value=promise.flipped)
    text = "The largest share of answers that may differ from those of all devices."
    yield GaugeMetricFamily("devit_flips_promised", text, value=promise.flips)
    text = "How large that share may be, by the audited answers."
    yield GaugeMetricFamily("devit_flips_bound", text, value=promise.flip_rate_bound)
    text = "Whether more differ than promised, so that all devices are asked again."
    yield GaugeMetricFamily("devit_promise_broken", text, value=float(promise.is_broken))


def _devices(devices: Sequence[DeviceStatus]) -> Iterator[Metric]:
    by_device = ("device",)
    up = GaugeMetricFamily("devit_device_up", "Whether a device is ready.", labels=by_device)
    spare = GaugeMetricFamily("devit_device_spare", "Whether another device serves in its place.", labels=by_device)
    credit = GaugeMetricFamily("devit_credit", "Frames that a device may have in flight.", labels=by_device)
    text = "How much speaks against a device's features, from 0 to 1: from there on it is a suspect."
    suspicion = GaugeMetricFamily("devit_device_suspicion", text, labels=by_device)
    for device in devices:
        up.add_metric([device.name], float(device.state is DeviceState.READY))
        spare.add_metric([device.name], float(device.is_spare))
        credit.add_metric([device.name], device.credit)
        suspicion.add_metric([device.name], device.suspicion)
    yield from (up, spare, credit, suspicion)
    yield _counter(
        "devit_reconnects",
        "Links after a device's first.",
        by_device,
        {(device.name,): max(0, device.links - 1) for device in devices},
    )
    yield _counter(
        "devit_missing",
        "Frames that ended without a device's feature, though it was requested.",
        ("device", "cause"),
        {
            (device.name, cause): n
            for device in devices
            for cause, n in (dict.fromkeys(_CAUSES, 0) | device.missing).items()
        },
    )
    yield _counter(
        "devit_features_rejected",
        "Messages of a device that were not used.",
        ("device", "reason"),
        {
            (device.name, reason): n
            for device in devices
            for reason, n in (dict.fromkeys(_REJECTIONS, 0) | {"late": device.late} | device.rejected).items()
        },
    )
    text = "How often a device's board slowed itself down for its power supply's sake since its agent's start."
    yield _counter(
        "devit_device_over_current_events",
        text,
        ("device", "cause"),
        {
            (device.name, cause): n
            for device in devices
            if device.over_current is not None
            for cause, n in asdict(device.over_current).items()
        },
    )
    yield _slowed(devices)
    engines = InfoMetricFamily("devit_device", "What a device runs.", labels=by_device)
    for device in devices:
        about = {"engine": device.engine, "engine_revision": f"{device.engine_revision:08x}"}
        engines.add_metric([device.name], about)
    yield engines
    for field, (name, text) in _HISTOGRAMS.items():
        yield _histogram(name, text, by_device, {(device.name,): getattr(device, field) for device in devices})


def _slowed(devices: Sequence[DeviceStatus]) -> Metric:
    text = "Whether a device is slower than it could be, by why; simulated where a folder stands for its board."
    slowed = GaugeMetricFamily("devit_device_slowed", text, labels=("device", "cause", "simulated"))
    for device in devices:
        simulated = "true" if device.throttling is not None and device.throttling.is_simulated else "false"
        for cause in Slowdown:
            slowed.add_metric([device.name, cause, simulated], float(cause in device.slowdowns))
    return slowed


def _clients(clients: Sequence[ClientStatus]) -> Iterator[Metric]:
    by_client = ("client",)
    yield _counter(
        "devit_client_frames",
        "Frames of a client that have ended.",
        ("client", "outcome"),
        {
            (client.name, key): n
            for client in clients
            for key, n in (dict.fromkeys(_OUTCOMES, 0) | _outcomes(client.frames)).items()
        },
    )
    yield _counter(
        "devit_client_requests_shed",
        "Requests of a client that were not served, by why.",
        ("client", "reason"),
        {
            (client.name, why): n
            for client in clients
            for why, n in (dict.fromkeys(ShedReason, 0) | client.shed).items()
        },
    )
    text = "What a client's frames took of the slowest device in them."
    yield _counter("devit_client_device_seconds", text, by_client, {(each.name,): each.device_s for each in clients})
    waiting = GaugeMetricFamily("devit_client_requests_waiting", "Requests that wait for a device.", labels=by_client)
    for client in clients:
        waiting.add_metric([client.name], client.waiting)
    yield waiting


def _outcomes(frames: Mapping[str, int]) -> dict[str, int]:
    """Count frames by how they ended, so that the counts add up to all of them."""
    shed = frames.get("shed", 0)
    return {key: n - shed if key == "failed" else n for key, n in frames.items()}


def _counter(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histogram(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Histogram | None]
) -> HistogramMetricFamily:
    """Make a family of those histograms that are there; their buckets are counted up for Prometheus."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in values.items():
        if histogram is not None:
            bounds = [*(repr(bound) for bound in histogram.bounds_s), "+Inf"]
            counts = accumulate(histogram.counts)
            family.add_metric(key, list(zip(bounds, counts, strict=True)), histogram.sum_s)
    return family
