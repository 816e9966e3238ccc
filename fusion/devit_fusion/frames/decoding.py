"""How long the devices take to decode the picture files of one client. No clock of its own."""

from __future__ import annotations

import math
import statistics

from devit_contract.artefacts.fleet import DECODED_PER_MS, LEAST_PIXELS, Serving

_NS_PER_PIXEL = 1e6 / DECODED_PER_MS
"""What is expected of a client of which nothing is known yet."""
_HALF_LIFE_NS = 10_000_000_000
"""What was measured counts half as much after that: a client whose files are refused is not refused for ever."""
_SMOOTHING = 4
"""Averages are over about as many files: one hiccup is not enough for a refusal."""
_LEAST_PIXELS = 100_000
"""Smaller files say little about large ones."""


class Decoding:
    """The files of one client."""

    def __init__(self) -> None:
        """Start with what is expected of any client."""
        self._rates: dict[int, tuple[float, int]] = {}  # by device: ns a pixel, and when that was measured

    def add(self, device: int, pixels: int, took_ns: int, now_ns: int) -> None:
        """Take in what a device took for one file."""
        if pixels >= _LEAST_PIXELS:
            rate = self._rate(device, now_ns)
            self._rates[device] = rate + (took_ns / pixels - rate) / _SMOOTHING, now_ns

    def expected_ns(self, pixels: int, now_ns: int) -> float:
        """Expect how long a file takes, by the median device: a single slow or lying one has no client refused."""
        rates = [self._rate(device, now_ns) for device in self._rates]
        return pixels * (statistics.median_low(rates) if rates else _NS_PER_PIXEL)

    def problem(self, pixels: int, serving: Serving, now_ns: int) -> str:
        """Say why devices are not to decode a file, if the last ones took them too long."""
        if pixels <= LEAST_PIXELS or serving.max_pixels:  # small, or for the operator to decide
            return ""
        expected_ms = self.expected_ns(pixels, now_ns) / 1e6
        third_ms = serving.deadline_ms / 3  # so that a frame of another client behind it is in time
        if expected_ms <= third_ms:
            return ""
        return (
            f"picture: expected one that devices decode in a third of the deadline, {third_ms:.0f} ms, found one that "
            f"takes about {expected_ms:.0f} ms: make it smaller, or set max_pixels in fleet.toml"
        )

    def _rate(self, device: int, now_ns: int) -> float:
        rate, at_ns = self._rates.get(device, (_NS_PER_PIXEL, now_ns))
        return _NS_PER_PIXEL + (rate - _NS_PER_PIXEL) * math.pow(0.5, (now_ns - at_ns) / _HALF_LIFE_NS)
