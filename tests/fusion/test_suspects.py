"""A device that lies to a real node: told, left out of answers, and let back in; with devices that the test plays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.fusion import test_policies
from tests.fusion.hand_made_devices import DEADLINE_S, Device, Scene
from tests.fusion.test_policies import SHIPPED, write_fleet

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import calibrate
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import Kind
from devit_contract.wire.status import NodeStatus

IMAGE = np.zeros((28, 28, 1), np.uint8)
LIAR = 2


class Cell:
    """Four devices whose features are drawn as the bundle's statistics say; one may say those of another image."""

    def __init__(self, stack: ExitStack, folder: Path, liars: str, serving: str = "") -> None:
        bundle, rng = Bundle(SHIPPED), np.random.default_rng(5)
        head = bundle.fusion_head()
        statistics = head.statistics
        drawn = rng.multivariate_normal(statistics.mean, statistics.covariance, 3000, check_valid="ignore")
        self._features = iter(drawn[2000:].astype(np.float32))
        calibration = calibrate(head, drawn[:2000].astype(np.float32))
        text = f'policy = "all"\ndeadline_ms = 20000\n{serving}'
        fleet = load_fleet(write_fleet(folder, text, f'[watch]\nliars = "{liars}"'))
        scene = Scene(stack, bundle, fleet, None, head=head, calibration=calibration)
        self.client: Client = scene.client()
        self.devices = [scene.greeted(index) for index in range(4)]
        self.client.status()

    def ask(self, *, is_lying: bool, without: int | None = None) -> Answer:
        """Have a frame answered by all devices, or by all but one that is not asked."""
        self.client.submit(IMAGE)
        right, other = self._feature(), self._feature()
        for device in self.devices:
            if device.submodel != without:
                frame = device.hear(Kind.FRAME)
                said = other if is_lying and device.submodel == LIAR else right
                device.socket.send(device.feature(frame, self._part(said, device)))
        ((_, answer),) = self.client.collect(DEADLINE_S)
        assert isinstance(answer, Answer)
        return answer

    def lie_until_suspect(self) -> NodeStatus:
        for _ in range(50):
            self.ask(is_lying=True)
            status = self.client.status()
            if status.devices[LIAR].is_suspect:
                return status
        raise AssertionError(status)

    def _feature(self) -> Float32Array:
        return np.asarray(next(self._features), np.float32)

    def _part(self, feature: Float32Array, device: Device) -> Float32Array:
        return feature[device.submodel * device.dim : (device.submodel + 1) * device.dim]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_a_liar_is_named_in_the_status_and_still_used_where_the_fleet_says_warn(
    stack: ExitStack, tmp_path: Path
) -> None:
    cell = Cell(stack, tmp_path, "warn")
    novelties = [cell.ask(is_lying=False).novelty for _ in range(10)]
    assert all(novelty is not None and 0 <= novelty <= 1 for novelty in novelties)
    status = cell.lie_until_suspect()
    assert [device.is_suspect for device in status.devices] == [False, False, True, False]
    assert status.devices[LIAR].suspicion == 1.0
    assert max(device.suspicion for device in status.devices if device.submodel != LIAR) < 1.0
    assert (status.events[0].device, status.events[0].text[:9]) == (f"jetson{LIAR}", "suspect: ")
    assert cell.ask(is_lying=True).mask == 0b1111


def test_an_excluded_liar_is_missing_and_let_back_in_when_it_is_right(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(stack, tmp_path, "exclude")
    cell.lie_until_suspect()
    monkeypatch.setattr("devit_fusion.devices.links.PROBE_NS", 0)  # else the hundred probes take a hundred seconds
    answer = cell.ask(is_lying=True)
    assert (answer.mask, answer.missing) == (0b1111 ^ 1 << LIAR, {LIAR: "suspect"})
    assert cell.client.status().devices[LIAR].state == "suspect"
    for _ in range(300):
        if cell.ask(is_lying=False).mask == 0b1111:
            break
    assert cell.ask(is_lying=False).mask == 0b1111
    assert cell.client.status().devices[LIAR].state == "ready"


def test_between_probes_an_excluded_device_is_not_asked(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devit_fusion.devices.links.PROBE_NS", 3_600_000_000_000)
    cell = Cell(stack, tmp_path, "exclude")
    cell.lie_until_suspect()
    sent = cell.client.status().devices[LIAR].sent
    monkeypatch.setattr("devit_fusion.devices.links.Link.take_probe", lambda link, now_ns: False)
    assert cell.ask(is_lying=False, without=LIAR).missing == {LIAR: "suspect"}
    assert cell.client.status().devices[LIAR].sent == sent


def test_no_device_is_left_out_that_an_answer_needs(stack: ExitStack, tmp_path: Path) -> None:
    cell = Cell(stack, tmp_path, "exclude", "min_devices = 4")
    cell.lie_until_suspect()
    assert cell.ask(is_lying=True).mask == 0b1111


def test_nothing_is_watched_where_the_fleet_says_off(stack: ExitStack, tmp_path: Path) -> None:
    cell = Cell(stack, tmp_path, "off")
    for _ in range(30):
        assert cell.ask(is_lying=True).novelty is None
    status = cell.client.status()
    assert (status.devices[LIAR].suspicion, status.devices[LIAR].is_suspect) == (0.0, False)
    assert not any("suspect" in event.text for event in status.events)


def test_a_device_that_connects_again_begins_anew(stack: ExitStack, tmp_path: Path) -> None:
    cell = Cell(stack, tmp_path, "warn")
    cell.lie_until_suspect()
    device = cell.devices[LIAR]
    device.boot_id += 1
    device.greet()
    cell.ask(is_lying=False)
    assert cell.client.status().devices[LIAR].suspicion < 0.5


def test_audits_find_a_liar_whom_no_answer_needs(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer of the first device is certain, so it is compared with others in audits alone."""
    bundle = Bundle(SHIPPED)
    shipped = bundle.calibration()
    assert shipped is not None
    calibration = replace(test_policies.CALIBRATION, usual=shipped.usual)
    monkeypatch.setattr(test_policies, "CALIBRATION", calibration)
    alone = {subset.mask: subset.validation_accuracy for subset in bundle.manifest.subsets}
    best = max(range(4), key=lambda device: alone[1 << device])
    liar, golden = (best + 1) % 4, test_policies.Golden(bundle)
    path = write_fleet(tmp_path, 'policy = "certain"\ndeadline_ms = 20000', 'order = "best"\naudit = 1')
    cell = test_policies.Cell(stack, bundle, golden, path, can_withdraw=True)
    for image in golden.images(certain=[1 << best])[:50]:
        asked = cell.client.submit(IMAGE)
        cell.play(best, image)
        assert cell.answer(asked).asked == 1 << best
        for device in set(range(4)) - {best}:
            cell.play(device, golden.other_than(image) if device == liar else image)
        if [device.is_suspect for device in cell.client.status().devices] == [index == liar for index in range(4)]:
            return
    raise AssertionError(cell.client.status())
