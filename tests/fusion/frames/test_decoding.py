"""What a client's picture files are expected to take, in milliseconds and megapixels."""

from __future__ import annotations

from devit_fusion.frames.decoding import Decoding

MS, S, MEGA = 1_000_000, 1_000_000_000, 1_000_000


def expected_ms(decoding: Decoding, now_ns: int = 0) -> int:
    return round(decoding.expected_ns(MEGA, now_ns) / MS)


def test_a_client_is_trusted_at_first_and_then_by_what_its_files_took() -> None:
    decoding = Decoding()
    assert expected_ms(decoding) == 17
    for _ in range(20):
        decoding.add(0, 2 * MEGA, 200 * MS, 0)
    assert expected_ms(decoding) in (99, 100)


def test_one_hiccup_refuses_no_small_file() -> None:
    decoding = Decoding()
    decoding.add(0, 300_000, 60 * MS, 0)
    assert decoding.expected_ns(300_000, 0) < 25 * MS
    decoding.add(0, 1000, 60 * MS, 0)
    assert decoding.expected_ns(300_000, 0) < 25 * MS


def test_a_single_slow_device_refuses_nobodys_files() -> None:
    decoding = Decoding()
    for _ in range(20):
        for device, took_ms in enumerate((30, 500, 20, 40)):
            decoding.add(device, MEGA, took_ms * MS, 0)
    assert expected_ms(decoding) == 30


def test_a_refused_client_is_tried_again() -> None:
    decoding = Decoding()
    for _ in range(20):
        decoding.add(0, MEGA, 105 * MS, 0)
    assert [expected_ms(decoding, seconds * S) for seconds in (0, 10, 20, 60)] == [105, 61, 39, 18]
