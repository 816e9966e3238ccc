"""Metrics by themselves, read back by the parsers of prometheus_client."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.machine import OverCurrentEvents
from devit_contract.wire.status import ClientStatus, DeviceStatus, Histogram, NodeStatus, PromiseStatus
from devit_contract.wire.words import NEVER_ASKED, DeviceState, MissingReason, ShedReason
from devit_gateway.exposition import write_metrics
from devit_gateway.joules import MeteredEnergy

HISTOGRAM = Histogram((0.001, 0.01), [3, 2, 1], 0.125)
STATUS = NodeStatus(
    bundle='odd "name"\n 1',
    labels=("up", "down"),
    image_shape=(6, 8, 1),
    preprocess=Preprocess(6, 8, "gray", "bicubic", True, 0),
    frames={"full": 10, "failed": 5, "shed": 2},
    devices=(
        DeviceStatus(
            "jetson1",
            0,
            DeviceState.READY,
            engine="TensorRT 10.3, fp16",
            engine_revision=0xAB,
            credit=2,
            links=3,
            late=4,
            missing={MissingReason.ABSENT: 7, MissingReason.DEADLINE: 1},
            rejected={"crc": 2},
            round_trip=HISTOGRAM,
            inference=HISTOGRAM,
            queue=HISTOGRAM,
            over_current=OverCurrentEvents(1, 0, 37),
        ),
        DeviceStatus("jetson2", 1, DeviceState.ABSENT),
    ),
    min_devices=1,
    deadline_ms=50.0,
    wire_bytes={"devices_in": 100, "clients_out": 50},
    software="0.1.0",
    uptime_s=12.5,
    open_frames=1,
    waiting_requests=2,
    frame_time=HISTOGRAM,
    refused_handshakes=3,
    unknown_peers=1,
    refused_requests={"shape": 5},
    floods=6,
    promise=PromiseStatus(0.01, 0.95, audited=90, flipped=2, flip_rate_bound=0.05, is_broken=True),
    asked={1: 8, 2: 7},
    clients=(
        ClientStatus(
            "camera",
            waiting=3,
            frames={"full": 9, "failed": 5, "shed": 2},
            device_s=1.5,
            shed={ShedReason.MAX_IN_FLIGHT: 2},
        ),
        ClientStatus("desk"),
    ),
)
ENERGIES = (
    MeteredEnergy("jetson1", 12.25, "module input (VDD_IN)", False),
    MeteredEnergy("jetson2", 1.5, "sum of 3 module rails", True),
)


def samples(text: bytes, parse: Any = parse_plain) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:  # noqa: ANN401 - of either format
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return samples(write_metrics(STATUS, ENERGIES, version="9.9")[0])


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("devit_frames_total", {"outcome": "full"}, 10),
        ("devit_frames_total", {"outcome": "failed"}, 3),
        ("devit_frames_total", {"outcome": "shed"}, 2),
        ("devit_frames_asked_total", {"devices": "0"}, 0),
        ("devit_frames_asked_total", {"devices": "1"}, 8),
        ("devit_frames_asked_total", {"devices": "2"}, 7),
        ("devit_answers_audited_total", {}, 90),
        ("devit_answers_flipped_total", {}, 2),
        ("devit_flips_promised", {}, 0.01),
        ("devit_flips_bound", {}, 0.05),
        ("devit_promise_broken", {}, 1),
        ("devit_frame_duration_seconds_bucket", {"le": "0.001"}, 3),
        ("devit_client_frames_total", {"client": "camera", "outcome": "full"}, 9),
        ("devit_client_frames_total", {"client": "camera", "outcome": "failed"}, 3),
        ("devit_client_frames_total", {"client": "desk", "outcome": "partial"}, 0),
        ("devit_client_device_seconds_total", {"client": "camera"}, 1.5),
        ("devit_client_requests_waiting", {"client": "camera"}, 3),
        ("devit_client_requests_shed_total", {"client": "camera", "reason": "max_in_flight"}, 2),
        ("devit_client_requests_shed_total", {"client": "camera", "reason": "deadline"}, 0),
        ("devit_frame_duration_seconds_bucket", {"le": "0.01"}, 5),
        ("devit_frame_duration_seconds_bucket", {"le": "+Inf"}, 6),
        ("devit_frame_duration_seconds_count", {}, 6),
        ("devit_frame_duration_seconds_sum", {}, 0.125),
        ("devit_device_rtt_seconds_count", {"device": "jetson1"}, 6),
        ("devit_agent_inference_seconds_bucket", {"device": "jetson1", "le": "0.01"}, 5),
        ("devit_agent_queue_seconds_sum", {"device": "jetson1"}, 0.125),
        ("devit_features_rejected_total", {"device": "jetson1", "reason": "crc"}, 2),
        ("devit_features_rejected_total", {"device": "jetson1", "reason": "late"}, 4),
        ("devit_missing_total", {"device": "jetson1", "cause": "absent"}, 7),
        ("devit_missing_total", {"device": "jetson1", "cause": "deadline"}, 1),
        ("devit_device_up", {"device": "jetson1"}, 1),
        ("devit_device_up", {"device": "jetson2"}, 0),
        ("devit_credit", {"device": "jetson1"}, 2),
        ("devit_device_over_current_events_total", {"device": "jetson1", "cause": "under_voltage"}, 1),
        ("devit_device_over_current_events_total", {"device": "jetson1", "cause": "average"}, 0),
        ("devit_device_over_current_events_total", {"device": "jetson1", "cause": "instantaneous"}, 37),
        ("devit_device_suspicion", {"device": "jetson1"}, 0),
        ("devit_auth_failures_total", {}, 4),
        ("devit_requests_refused_total", {"reason": "shape"}, 5),
        ("devit_floods_total", {}, 6),
        ("devit_reconnects_total", {"device": "jetson1"}, 2),
        ("devit_reconnects_total", {"device": "jetson2"}, 0),
        ("devit_wire_bytes_total", {"direction": "devices_in"}, 100),
        ("devit_build_info", {"version": "9.9", "node_version": "0.1.0", "bundle": 'odd "name"\n 1'}, 1),
        ("devit_device_info", {"device": "jetson1", "engine": "TensorRT 10.3, fp16", "engine_revision": "000000ab"}, 1),
        ("devit_node_up", {}, 1),
        (
            "devit_device_energy_joules_total",
            {"device": "jetson1", "scope": "module input (VDD_IN)", "simulated": "false"},
            12.25,
        ),
        (
            "devit_device_energy_joules_total",
            {"device": "jetson2", "scope": "sum of 3 module rails", "simulated": "true"},
            1.5,
        ),
    ],
)
def test_every_figure_of_the_node_is_told(
    found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, labels: dict[str, str], value: float
) -> None:
    assert found[name, frozenset(labels.items())] == value


def test_outcomes_add_up_to_all_frames(found: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
    assert sum(value for (name, _), value in found.items() if name == "devit_frames_total") == 15


def test_both_formats_tell_the_same(found: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    text, content_type = write_metrics(STATUS, ENERGIES, version="9.9", accept=accept)
    assert content_type.startswith("application/openmetrics-text")
    assert samples(text, parse_open) == found


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=x", "application/openmetrics-text;version=x;q=\xff"])
def test_any_accept_header_gets_a_format(accept: str) -> None:
    assert write_metrics(None, (), version="9.9", accept=accept)[0]


def test_without_the_node_its_metrics_are_absent_and_the_others_stay() -> None:
    found = samples(write_metrics(None, ENERGIES, version="9.9")[0])
    names = {name for name, _ in found}
    assert names == {"devit_build_info", "devit_node_up", "devit_device_energy_joules_total"}
    assert found["devit_node_up", frozenset()] == 0


def test_a_node_that_counts_nothing_yet_is_told_all_the_same() -> None:
    bare = NodeStatus("b 1", ("up",), (1, 1, 1), STATUS.preprocess, {}, (), 1, 50.0, {})
    assert samples(write_metrics(bare, (), version="9.9")[0])["devit_node_up", frozenset()] == 1


def test_names_follow_prometheus_rules() -> None:
    families = list(parse_plain(write_metrics(STATUS, ENERGIES, version="9.9")[0].decode()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"devit_[a-z][a-z_]*", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_counters_are_there_before_their_first_event() -> None:
    """Prometheus' increase() sees no event in a counter that begins with it."""
    fresh = NodeStatus(
        "b 1", ("up",), (1, 1, 1), STATUS.preprocess, {}, (DeviceStatus("jetson1", 0, DeviceState.ABSENT),), 1, 50.0, {}
    )
    zeros = {key for key, value in samples(write_metrics(fresh, (), version="9.9")[0]).items() if value == 0}
    expected = [
        *(("devit_frames_asked_total", {"devices": str(count)}) for count in (0, 1)),
        *(("devit_frames_total", {"outcome": name}) for name in ("full", "certain", "partial", "failed", "shed")),
        *(
            ("devit_missing_total", {"device": "jetson1", "cause": str(cause)})
            for cause in MissingReason
            if cause not in NEVER_ASKED
        ),
        *(
            ("devit_features_rejected_total", {"device": "jetson1", "reason": reason})
            for reason in ("late", "duplicate", "size", "crc", "body", "boot", "run", "shape", "nonfinite", "engine")
        ),
        *(
            ("devit_requests_refused_total", {"reason": reason})
            for reason in ("size", "kind", "body", "shape", "mask", "policy")
        ),
    ]
    assert {(name, frozenset(labels.items())) for name, labels in expected} <= zeros


def test_a_device_whose_board_counts_no_over_current_events_has_no_such_metric() -> None:
    found = samples(write_metrics(STATUS, (), version="9.9")[0])
    name = "devit_device_over_current_events_total"
    assert {dict(labels)["device"] for metric, labels in found if metric == name} == {"jetson1"}
