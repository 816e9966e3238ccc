"""The watch on the promise: it is quiet where the promise holds, and quick where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from devit_contract.artefacts.fleet import Certain
from devit_contract.service.journal import Log
from devit_fusion.events import Events
from devit_fusion.frames.promise import Promise


def promise(flips: float = 0.01, audit: float = 1.0) -> tuple[Promise, Events]:
    events = Events(Log("test"))
    return Promise(Certain(flips=flips, audit=audit), events), events


def serve(rate: float, count: int, generator: np.random.Generator, *, certain: float = 1.0) -> int:
    """Serve answers of which a share flips; give after how many the promise counted as broken, or 0."""
    watched, _ = promise()
    for number in range(1, count + 1):
        is_certain = bool(generator.random() < certain)
        watched.tested(is_certain=is_certain)
        if is_certain:
            watched.audited(is_flip=bool(generator.random() < rate / certain))
        if watched.is_broken:
            return number
    return 0


def test_a_promise_that_just_holds_is_rarely_called_broken_however_long_it_is_watched() -> None:
    """At the very rate that was promised, with half the answers certain, one watch in twenty may be wrong."""
    generator = np.random.default_rng(1)
    assert sum(serve(0.01, 2000, generator, certain=0.5) > 0 for _ in range(100)) <= 10  # P(more) < 0.02


def test_a_promise_that_is_kept_with_room_is_never_called_broken() -> None:
    generator = np.random.default_rng(2)
    assert not any(serve(0.003, 2000, generator) for _ in range(50))


@pytest.mark.parametrize(("rate", "most"), [(0.05, 400), (0.2, 60), (1.0, 5)])
def test_a_broken_promise_is_noticed_the_sooner_the_more_answers_flip(rate: float, most: int) -> None:
    generator = np.random.default_rng(3)
    needed = [serve(rate, 4000, generator) for _ in range(20)]
    assert all(needed)
    assert np.median(needed) <= most


def test_the_bound_is_of_all_answers_of_which_only_certain_ones_can_flip() -> None:
    watched, events = promise()
    for number in range(400):
        if watched.tested(is_certain=number % 4 == 0):
            watched.audited(is_flip=number == 40)
    status = watched.status()
    assert (status.flips, status.audited, status.flipped, status.is_broken) == (0.01, 100, 1, False)
    assert status.flip_rate_bound == pytest.approx(0.0466 / 4, abs=1e-4)  # exact binomial, 1 of 100
    assert events.latest() == ()


def test_before_any_audit_nothing_is_known_but_how_many_were_certain() -> None:
    watched, _ = promise(audit=0.0)
    assert watched.status().flip_rate_bound == 1.0
    assert not any(watched.tested(is_certain=number < 3) for number in range(4))
    assert watched.status().flip_rate_bound == 0.75


def test_about_the_share_that_is_wanted_is_audited() -> None:
    watched, _ = promise(audit=0.1)
    assert 700 < sum(watched.tested(is_certain=True) for _ in range(10_000)) < 1300
    assert not watched.tested(is_certain=False)
