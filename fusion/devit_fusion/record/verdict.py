"""What a replay shows: how its answers differ from the recorded ones, and whether to deploy what was changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

from devit_contract.artefacts.head import devices_of
from devit_contract.binomial import upper_bound
from devit_contract.wire.words import NEVER_ASKED
from devit_fusion.record.known import Counts, Pair
from devit_fusion.record.records import Answered

Verdict = Literal["deploy", "review", "blocked"]
"""``blocked``: a limit is broken; ``review``: the recording does not show that all are kept; else ``deploy``."""
_CONFIDENCE = 0.95


class Limits(msgspec.Struct, frozen=True):
    """What may be worse than it was."""

    flips: float = 0.01
    """Share of the answers whose class differs."""
    failed: float = 0.001
    """By how much the share of failed answers may rise."""
    accuracy: float = 0.005
    """By how much the accuracy may fall, where labels are known."""


class Side(msgspec.Struct):
    """The recorded answers, or the replayed ones."""

    states: dict[str, int]
    misses: dict[str, int]
    """Features that were asked for and did not come, by device index and reason."""
    p50_ms: float
    """From a request's arrival at the node to its answer, without fusing it."""
    p99_ms: float
    asked: float
    """Devices that a frame asked, on average."""
    accuracy: float | None = None


class Comparison(msgspec.Struct):
    """What ``devit replay --json`` prints."""

    verdict: Verdict
    reasons: tuple[str, ...]
    requests: int
    compared: int
    """Requests that were answered then and now."""
    equal: int
    """Of them, with the same logits byte by byte, the same state and the same devices."""
    flips: int
    """Of them, with another class."""
    changes: dict[str, int]
    """Of them, those whose state differs: ``full > partial``."""
    was: Side
    now: Side
    labelled: int
    recorded_s: float
    took_s: float
    speed: float
    """Recorded seconds in one of the replay."""
    counts: dict[str, int]


class Tally:
    """Compares request by request."""

    def __init__(self, labels: Mapping[str, int] | None = None) -> None:
        """Start with none; ``labels`` is the class by request number or by the image's SHA-256."""
        self._labels = labels or {}
        self._was, self._now = _Side(), _Side()
        self._compared = self._equal = self._flips = self._labelled = 0
        self._changes: Counter[str] = Counter()

    def add(self, pair: Pair) -> None:
        """Take one in."""
        was, now = pair.was, pair.now
        self._compared += 1
        self._equal += (was.logits, was.state, was.mask) == (now.logits, now.state, now.mask)
        if was.state != now.state:
            self._changes[f"{was.state} > {now.state}"] += 1
        best, found = self._was.add(was), self._now.add(now)
        self._flips += best is not None and found is not None and best != found
        label = self._labels.get(pair.image_sha256)
        if label is None:
            label = self._labels.get(str(pair.key[2]))
        if label is not None:
            self._labelled += 1
            self._was.right += best == label
            self._now.right += found == label

    def compare(self, counts: Counts, damage: list[str], limits: Limits) -> Comparison:
        """Judge all that was taken in."""
        was, now = self._was.shown(self._labelled), self._now.shown(self._labelled)
        broken, unsure = self._broken(was, now, limits), self._unsure(was, now, counts, limits)
        verdict: Verdict = "blocked" if broken else "review" if unsure or damage else "deploy"
        recorded_s = counts.recorded_ns / 1e9
        return Comparison(
            verdict=verdict,
            reasons=(*broken, *unsure, *damage),
            requests=counts.requests,
            compared=self._compared,
            equal=self._equal,
            flips=self._flips,
            changes=dict(self._changes.most_common()),
            was=was,
            now=now,
            labelled=self._labelled,
            recorded_s=recorded_s,
            took_s=counts.took_s,
            speed=recorded_s / counts.took_s if counts.took_s else 0.0,
            counts={"cut": counts.cut, "lost": counts.lost, "unknown": counts.unknown, "unanswered": counts.unanswered},
        )

    def _broken(self, was: Side, now: Side, limits: Limits) -> list[str]:
        compared, found = max(1, self._compared), []
        if self._flips > limits.flips * compared:
            found.append(f"{self._flips} of {compared} answers flip, more than {limits.flips:.2%}")
        more_failed = now.states.get("failed", 0) - was.states.get("failed", 0)
        if more_failed > limits.failed * compared:
            found.append(f"{more_failed} more answers fail, more than {limits.failed:.2%}")
        if was.accuracy is not None and now.accuracy is not None and was.accuracy - now.accuracy > limits.accuracy:
            found.append(
                f"accuracy falls from {was.accuracy:.2%} to {now.accuracy:.2%}, more than {limits.accuracy:.2%}"
            )
        return found

    def _unsure(self, was: Side, now: Side, counts: Counts, limits: Limits) -> list[str]:
        found = []
        if not self._compared:
            return ["no request was answered both then and now"]
        bound = upper_bound(self._flips, self._compared, _CONFIDENCE)
        if self._equal < self._compared and bound > limits.flips:
            found.append(
                f"{self._compared} answers are too few: up to {bound:.2%} may flip, more than {limits.flips:.2%}"
            )
        if counts.unknown:
            found.append(f"{counts.unknown} features would be asked for that were not recorded: they count as missing")
        if counts.under_way:
            found.append(f"{counts.under_way} frames were under way where the replay began: its answers may differ")
        if counts.lost:
            found.append(f"{counts.lost} records were lost: the recorder was too slow for them")
        if counts.unanswered:
            found.append(f"{counts.unanswered} requests were answered then, and are not now")
        return found


class _Side:
    def __init__(self) -> None:
        self.right = 0
        self._states: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._asked = 0
        self._took_us: list[int] = []

    def add(self, answer: Answered) -> int | None:
        """Take an answer in, and give its class; ``None`` if it failed."""
        self._states[answer.state] += 1
        self._asked += answer.asked.bit_count()
        self._took_us.append(answer.wait_us + answer.collect_us)
        for device in devices_of(answer.asked & ~answer.mask):
            why = answer.missing.get(device)
            if why is not None and why not in NEVER_ASKED:
                self._misses[f"{device} {why}"] += 1
        return int(np.frombuffer(answer.logits, "<f4").argmax()) if answer.logits else None

    def shown(self, labelled: int) -> Side:
        """Sum up."""
        took_us = np.asarray(self._took_us or [0])
        p50_us, p99_us = np.percentile(took_us, (50, 99))
        return Side(
            states=dict(self._states),
            misses=dict(self._misses.most_common()),
            p50_ms=float(p50_us) / 1000,
            p99_ms=float(p99_us) / 1000,
            asked=self._asked / max(1, len(self._took_us)),
            accuracy=self.right / labelled if labelled else None,
        )
