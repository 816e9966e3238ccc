"""Loads on one side: one request under way, as many as it takes, or as many as come by chance."""

from __future__ import annotations

import time
from itertools import count

import numpy as np
from benchmarks.common.measure import Samples
from benchmarks.peers.peer import ANSWER_S, Peer


def one_at_a_time(peer: Peer, duration_s: float) -> Samples:
    """Ask for one image after the other: what each answer took, in microseconds."""
    taken_us: list[float] = []
    end_s = time.perf_counter() + duration_s
    start_s = 0.0
    while not taken_us or start_s < end_s:
        start_s = time.perf_counter()
        peer.ask(peer.images[len(taken_us) % len(peer.images)])
        taken_us.append((time.perf_counter() - start_s) * 1e6)
    return np.asarray(taken_us, np.float64)


def saturated(peer: Peer, duration_s: float, in_flight: int) -> Samples:
    """Keep requests under way: one number, the answers a second."""
    numbers = count()
    for _ in range(in_flight):
        _submit(peer, next(numbers))
    start_s, answers = time.perf_counter(), 0
    while answers < in_flight or time.perf_counter() - start_s < duration_s:
        for _ in _some(peer):
            answers += 1
            _submit(peer, next(numbers))
    rate = answers / (time.perf_counter() - start_s)
    left = in_flight
    while left:
        left -= len(_some(peer))
    return np.asarray([rate], np.float64)


def by_chance(peer: Peer, duration_s: float, rate: float, seed: int) -> Samples:
    """Send at random times, a Poisson process, whether or not there are answers: microseconds from the time planned.

    A request that waits because the side before it was slow counts its wait, so no stall is hidden.
    """
    rng = np.random.default_rng(seed)
    planned_s = np.cumsum(rng.exponential(1 / rate, max(1, rng.poisson(rate * duration_s))))
    taken_us = np.zeros(len(planned_s))
    start_s = time.perf_counter()
    sent = done = 0
    while done < len(planned_s):
        now_s = time.perf_counter() - start_s
        while sent < len(planned_s) and planned_s[sent] <= now_s:
            _submit(peer, sent)
            sent += 1
        wait_s = planned_s[sent] - (time.perf_counter() - start_s) if sent < len(planned_s) else ANSWER_S
        for number in peer.collect(max(0.0, wait_s)):
            taken_us[number] = (time.perf_counter() - start_s - planned_s[number]) * 1e6
            done += 1
    return taken_us


def _submit(peer: Peer, number: int) -> None:
    peer.submit(peer.images[number % len(peer.images)], number)


def _some(peer: Peer) -> list[int]:
    found = peer.collect(ANSWER_S)
    if not found:
        raise RuntimeError(f"expected an answer within {ANSWER_S:g} s, found none: does it hang?")
    return found
