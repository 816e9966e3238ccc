"""Which devices a frame asks, by the state of their links."""

from __future__ import annotations

import pytest

from devit_contract.artefacts.calibration import calibrated_masks
from devit_contract.artefacts.fleet import Certain, Device, Fleet, Node, Serving
from devit_contract.artefacts.head import mask_of
from devit_contract.choices import Order, Policy
from devit_contract.wire.codec import Kind, Message
from devit_contract.wire.messages import DeviceTiming, Hello
from devit_contract.wire.words import Slowdown
from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import Flight
from devit_fusion.frames.stages import Stages, stage_sizes
from devit_fusion.ports.clients import Request

DEADLINE_NS = 10**9


def request(policy: Policy) -> Request:
    return Request(b"", "", Message(Kind.REQUEST), 0, policy)


def cell(devices: int, order: Order = "rotating", stages: tuple[int, ...] = (1, 1)) -> tuple[Stages, list[Link]]:
    fleet = Fleet(
        2,
        Node("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        tuple(Device(f"jetson{index}", index) for index in range(devices)),
        Serving(),
        Certain(order=order, stages=stages),
    )
    accuracies = {1 << index: 0.5 + index / 100 for index in range(devices)}
    links = [Link(index, f"jetson{index}", 2, DEADLINE_NS) for index in range(devices)]
    for link in links:
        link.connect(Hello(link.name, link.index, 1, "", "", ("float32",), ""), 1, 1)
    return Stages(fleet, devices=devices, accuracies=accuracies, is_calibrated=True), links


@pytest.mark.parametrize(
    ("stages", "devices", "min_devices", "sizes"),
    [
        ((1, 1), 4, 1, (1, 1)),
        ((1, 1, 2), 4, 1, (1, 1)),  # the rest may be named
        ((1, 3), 4, 1, (1,)),
        ((1, 1), 4, 2, (2, 1)),
        ((1, 1), 4, 4, ()),
        ((1, 1), 1, 1, ()),
        ((3, 3), 4, 1, (3,)),
    ],
)
def test_stages_leave_a_last_one_for_the_rest(
    stages: tuple[int, ...], devices: int, min_devices: int, sizes: tuple[int, ...]
) -> None:
    assert stage_sizes(stages, devices=devices, min_devices=min_devices) == sizes


@pytest.mark.parametrize(
    ("order", "expected"), [("rotating", [1, 3]), ("best", [3, 2]), ("cost", [2, 1])], ids=["rotating", "best", "cost"]
)
def test_an_order_goes_by_load_or_accuracy_or_time(order: Order, expected: list[int]) -> None:
    stages, links = cell(4, order, stages=(2, 1))
    for link, took_ns in zip(links, (400, 300, 200, 350), strict=True):
        link.pace.answered(Flight(0, DEADLINE_NS), took_ns, DeviceTiming(link.index, 0, 0, 0, 0, 0))
    links[0].sent(1, Flight(0, DEADLINE_NS))
    stages.asked(2)
    assert [link.index for link in stages.first(request("certain"), links, 0)] == expected


@pytest.mark.parametrize("order", ["rotating", "best", "cost"])
def test_a_device_that_slows_down_is_asked_after_the_others_in_any_order(order: Order) -> None:
    stages, links = cell(3, order)
    for link, took_ns in zip(links, (400, 300, 200), strict=True):
        link.pace.answered(Flight(0, DEADLINE_NS), took_ns, DeviceTiming(link.index, 0, 0, 0, 0, 0))
    first = stages.first(request("certain"), links, 0)[0]
    first.slowdowns = (Slowdown.ALERT,)
    assert stages.first(request("certain"), links, 0)[0] is not first
    course = stages.course(request("certain"), [links[0]])
    assert course is not None
    course.sizes = (2,)
    assert first not in stages.next(course, links, 0)
    assert list(stages.first(request("all"), links, 0)) == links
    for link in links:
        link.slowdowns = (Slowdown.CLOCK,)
    assert stages.first(request("certain"), links, 0)[0] is first


def test_a_device_that_slows_down_is_asked_under_replica_where_the_others_have_no_room() -> None:
    stages, links = cell(2)
    links[1].slowdowns = (Slowdown.LATENCY,)
    for number in range(2):
        assert list(stages.first(request("replica"), links, 0)) == [links[0]]
        links[0].sent(number, Flight(0, DEADLINE_NS))
    assert list(stages.first(request("replica"), links, 0)) == [links[1]]


def test_single_and_replica_are_one_device_whatever_the_order_of_stages() -> None:
    stages, links = cell(4, "cost")
    links[0].sent(1, Flight(0, DEADLINE_NS))
    assert [link.index for link in stages.first(request("single"), links, 0)] == [3]
    assert [link.index for link in stages.first(request("replica"), links, 0b0010)] == [2]
    for number in (2, 3):
        links[3].sent(number, Flight(0, DEADLINE_NS))
    assert [link.index for link in stages.first(request("single"), links, 0)] == [3]  # waits for it
    assert [link.index for link in stages.first(request("single"), links, 0, is_late=True)] != [3]


def test_in_a_large_cell_every_subset_that_is_tested_is_a_calibrated_one() -> None:
    stages, links = cell(8, stages=(2, 3, 1))
    calibrated = set(calibrated_masks(8))
    for _ in range(20):
        first = stages.first(request("certain"), links, 0)
        course = stages.course(request("certain"), first)
        assert course is not None
        asked = [link.index for link in first]
        while len(asked) < 8:
            for index in asked:
                stages.asked(index)
            assert mask_of(asked) in calibrated
            ready = [link for link in links if link.index not in asked]
            asked += [link.index for link in stages.next(course, ready, 0)]
            course.sizes = course.sizes[1:]
