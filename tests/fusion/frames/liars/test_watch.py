"""Devices that lie are named, right ones are not: the watch over Gaussian features of images that all devices see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import calibrate
from devit_contract.artefacts.head import FusionHead, FusionStatistics
from devit_contract.service.journal import Log
from devit_fusion.events import Events
from devit_fusion.frames.liars.evidence import Evidence
from devit_fusion.frames.liars.watch import Watch

DEVICES, DIM, IMAGES = 4, 12, 2000
Features = dict[int, Float32Array]
Lie = Callable[["World", int], Float32Array]


class World:
    """Images as latent vectors; each device sees them in its own way, with noise of its own."""

    def __init__(self, devices: int = DEVICES) -> None:
        self.rng = np.random.default_rng(7)
        self._views = self.rng.normal(size=(devices, 6, DIM))
        flat = np.concatenate(list(self._views), axis=1)
        covariance = flat.T @ flat + 0.1 * np.eye(devices * DIM)
        dims, total = (DIM,) * devices, devices * DIM
        self.head = FusionHead(dims, np.ones((3, total)), np.zeros(3), FusionStatistics(np.zeros(total), covariance))
        validation = np.concatenate(list(self.see(IMAGES).values()), axis=1)
        self.usual = calibrate(self.head, validation).usual
        assert self.usual is not None
        self.events = Events(Log("test"))
        self.watch = Watch(self.head, self.usual, {index: f"jetson{index}" for index in range(devices)}, self.events)

    def see(self, images: int) -> Features:
        """Show the devices new images; features ``(images, DIM)``."""
        latent = self.rng.normal(size=(images, 6))
        noise = np.sqrt(0.1) * self.rng.normal(size=(len(self._views), images, DIM))
        return {i: (latent @ view + noise[i]).astype(np.float32) for i, view in enumerate(self._views)}

    def look(self, changed: dict[int, Float32Array] | None = None, *, only: tuple[int, ...] = ()) -> Features:
        """Have the watch look at a new image, of which some devices say something else, or only some speak."""
        seen = {device: feature[0] for device, feature in self.see(1).items()}
        said = seen | (changed or {})
        self.watch.look({device: said[device] for device in only or said})
        self.watch.catch_up()
        return seen

    def texts(self) -> list[str]:
        return [f"{event.device}: {event.text}" for event in self.events.latest()]


def other_image(world: World, device: int) -> Float32Array:
    return world.see(1)[device][0]


def noise(world: World, device: int) -> Float32Array:
    block = world.head.statistics.covariance[:DIM, :DIM]
    return world.rng.multivariate_normal(np.zeros(DIM), block).astype(np.float32)


def other_engine(world: World, device: int) -> Float32Array:
    return world.see(1)[(device + 1) % DEVICES][0]


def constant(world: World, device: int) -> Float32Array:
    return np.linspace(-1, 1, DIM).astype(np.float32) * 3


@pytest.fixture
def world() -> World:
    return World()


def test_no_one_is_suspected_while_all_are_right(world: World) -> None:
    for _ in range(3000):
        world.look()
    assert (world.watch.suspects, world.texts()) == ({}, [])
    assert max(world.watch.suspicion(device) for device in range(DEVICES)) < 0.8


@pytest.mark.parametrize("lie", [other_image, noise, other_engine, constant])
@pytest.mark.parametrize("liar", [0, 3])
def test_a_liar_is_named_within_fifty_frames_and_nobody_else(world: World, lie: Lie, liar: int) -> None:
    frames = 0
    while not world.watch.suspects:
        world.look({liar: lie(world, liar)})
        frames += 1
        assert frames <= 50
    assert list(world.watch.suspects.items()) == [(liar, "constant" if lie is constant else "disagrees")]
    assert world.watch.suspicion(liar) == 1.0
    (text,) = world.texts()
    assert text.startswith(f"jetson{liar}: suspect: ")


def test_a_device_that_answers_for_earlier_frames_is_stale(world: World) -> None:
    before = [world.look() for _ in range(3)]
    for _ in range(50):
        before.append(world.look({1: before[-3][1]}))
    assert world.watch.suspects == {1: "stale"}


def test_a_suspect_that_is_right_again_is_trusted_again(world: World) -> None:
    for _ in range(50):
        world.look({2: other_image(world, 2)})
    assert list(world.watch.suspects) == [2]
    for _ in range(300):
        world.look()
    assert (world.watch.suspects, world.texts()[0]) == ({}, "jetson2: agrees with the others again")


def test_two_liars_that_agree_with_nobody_are_both_named(world: World) -> None:
    for _ in range(50):
        world.look({0: other_image(world, 0), 2: other_image(world, 2)})
    assert set(world.watch.suspects) == {0, 2}


def test_two_against_two_is_told_and_nobody_is_named(world: World) -> None:
    for _ in range(50):
        lie = {device: feature[0] for device, feature in world.see(1).items() if device in (0, 2)}
        world.look(lie)
    assert (world.watch.suspects, world.watch.is_unclear) == ({}, True)
    (text,) = world.texts()
    assert text.startswith(": the devices disagree (jetson0 and jetson1, ")


def test_of_two_devices_that_disagree_none_is_named() -> None:
    world = World(devices=2)
    for _ in range(60):
        world.look({0: other_image(world, 0)})
    assert (world.watch.suspects, world.watch.is_unclear) == ({}, True)


def test_a_liar_is_named_from_pairs_alone(world: World) -> None:
    """A frame that asks some devices compares those; the third device of each has to be somebody else."""
    for frame in range(120):
        first = frame % DEVICES
        world.look({1: other_image(world, 1)}, only=(first, (first + 1 + frame // DEVICES % 3) % DEVICES))
    assert world.watch.suspects == {1: "disagrees"}


def test_a_device_that_is_gone_speaks_for_no_liar(world: World) -> None:
    for _ in range(20):
        world.look()
    for _ in range(50):
        world.look({1: other_image(world, 1)}, only=(0, 1, 2))
    assert world.watch.suspects == {1: "disagrees"}


def test_a_scene_that_stands_still_is_one_image_however_rare(world: World) -> None:
    """Features that agree as little as those of other images, but do not change, count once."""
    odd = {device: world.see(1)[device][0] for device in range(DEVICES)}
    for _ in range(500):
        world.look(odd)
    assert (world.watch.suspects, world.watch.is_unclear) == ({}, False)


def test_the_novelty_of_right_images_is_spread_evenly_and_of_odd_ones_near_one(world: World) -> None:
    for devices in ((0, 1, 2, 3), (2,)):
        seen = [
            {device: feature[0] for device, feature in world.see(1).items() if device in devices} for _ in range(1000)
        ]
        found = [world.watch.look(features) for features in seen]
        shares = [np.mean([novelty is not None and novelty >= share for novelty in found]) for share in (0.5, 0.9)]
        np.testing.assert_allclose(shares, [0.5, 0.1], atol=0.06)
    far = world.watch.look({device: 5 * feature for device, feature in seen[0].items()} | {2: 5 * seen[0][2]})
    assert far is not None
    assert far > 0.999


def test_evidence_reaches_its_limit_by_chance_as_rarely_as_it_says(world: World) -> None:
    """Over pairs at a limit of a hundred frames: alarms of right pairs are no more than one in a hundred frames."""
    evidence, frames, alarms = Evidence(world.usual, DEVICES), 5000, 0
    compared = world.watch._comparison.of(world.see(frames))
    for agreements in compared.agreements:
        evidence.add(range(DEVICES), evidence.gains(range(DEVICES), agreements), np.ones(DEVICES))
        if evidence.of_pairs[0, 1] >= np.log(100):
            alarms += 1
            evidence.forget(0)
    assert 1 <= alarms <= frames / 100


@pytest.mark.parametrize("at_once", [2, 7, 16])
def test_frames_that_are_compared_together_are_judged_as_one_by_one(at_once: int) -> None:
    """Among them frames of some devices only, one that says the same again at first, and one that lies at the end."""
    alone, together = World(), World()
    for frame in range(64):
        only = (0, 1, 2) if frame % 5 == 0 else ()
        for world in (alone, together):
            changed = {1: other_image(world, 1)} if frame > 30 else {}
            said = {device: feature[0] for device, feature in world.see(1).items()} | changed
            if frame < 4:
                said[3] = np.ones(DIM, np.float32)
            world.watch.look({device: said[device] for device in only or said})
            if world is alone or world.watch.frames_behind == at_once:
                world.watch.catch_up()
    together.watch.catch_up()
    assert together.watch.suspects == alone.watch.suspects != {}
    for device in range(DEVICES):
        assert together.watch.suspicion(device) == pytest.approx(alone.watch.suspicion(device), abs=1e-6)
