"""The table of a client's requests, without a socket and with clocks by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from devit_contract.errors import InputError, NoAnswerError
from devit_contract.wire.codec import Dtype
from devit_contract.wire.messages import ControlReply
from devit_contract.wire.requests import Request, Requests, image_request

LATE = NoAnswerError("late")


def request(end_s: float = 10.0, *, is_question: bool = False) -> Request:
    return Request(b"%g" % end_s, is_question, sent_s=0.0, end_s=end_s)


def sent(table: Requests) -> list[bytes]:
    found: list[bytes] = []
    assert not table.flush(lambda data: found.append(data) is None)
    return found


def test_requests_are_sent_once_in_order_and_all_open_ones_again_on_a_new_link() -> None:
    table = Requests()
    for number in (1, 2, 3):
        table.add(number, request(float(number)))
    assert sent(table) == [b"1", b"2", b"3"]
    table.end(2, LATE)
    table.send_again()
    assert sent(table) == [b"1", b"3"]


def test_a_request_that_is_over_before_it_was_sent_is_never_sent() -> None:
    table = Requests()
    table.add(1, request(1.0))
    table.add(2, request(2.0))
    table.expire(1.0, LATE)
    assert sent(table) == [b"2"]
    assert table.take_answers() == [(1, LATE)]


def test_what_is_overdue_ends_with_the_error_and_the_rest_stays_open() -> None:
    table = Requests()
    assert table.next_end_s() == math.inf
    for number in (1, 2, 3):
        table.add(number, request(float(number), is_question=number == 2))
    assert table.next_end_s() == 1.0
    table.expire(2.5, LATE)
    assert (list(table.open), table.next_end_s()) == ([3], 3.0)
    assert (table.take_answers(), table.replies) == ([(1, LATE)], {2: LATE})


def test_what_the_link_does_not_take_is_kept_for_later() -> None:
    table = Requests()
    for number in (1, 2, 3):
        table.add(number, request(float(number)))
    assert table.flush(lambda data: data == b"1")
    assert sent(table) == [b"2", b"3"]


def test_an_answer_is_handed_out_once_and_a_reply_is_no_answer() -> None:
    table = Requests()
    table.add(1, request())
    table.add(2, request(is_question=True))
    table.end(1, LATE)
    table.end(2, ControlReply())
    assert table.replies == {2: ControlReply()}
    assert table.take_answers() == [(1, LATE)]
    assert table.take_answers() == []


def test_a_forgotten_request_leaves_nothing_behind() -> None:
    table = Requests()
    for number in (1, 2):
        table.add(number, request())
    table.end(1, LATE)
    table.forget(1)
    table.forget(2)
    assert (table.open, table.answers, sent(table)) == ({}, {}, [])


@pytest.mark.parametrize(
    ("picture", "dtype", "dims"),
    [(None, Dtype.NONE, ()), (b"JPEG", Dtype.ENCODED, ()), (np.zeros((2, 3, 1), np.uint8), Dtype.UINT8, (2, 3, 1))],
)
def test_a_picture_becomes_a_request(picture: bytes, dtype: Dtype, dims: tuple[int, ...]) -> None:
    message = image_request(picture, mask=5, run_id=6, number=7)
    assert (message.dtype, message.dims, message.mask, message.run_id, message.frame_id) == (dtype, dims, 5, 6, 7)


def test_an_image_is_coded_as_the_node_wants_it() -> None:
    image = np.zeros((80, 70, 3), np.uint8)
    for coding, mark in (("jpeg", b"\xff\xd8\xff"), ("lossless", b"RIFF")):
        message = image_request(image, mask=0, run_id=6, number=7, coding=coding)
        assert (message.dtype, message.dims, bytes(message.payload[: len(mark)])) == (Dtype.ENCODED, (80, 70, 3), mark)


def test_an_image_that_coding_makes_larger_or_that_cannot_be_coded_goes_raw() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (80, 70, 3), np.uint8)
    for image in (noise, noise[..., :2], noise[0], noise.astype(np.float32)):
        message = image_request(image, mask=0, run_id=6, number=7, coding="lossless")
        assert (message.dims, bytes(message.payload)) == (image.shape, image.tobytes())
        assert message.dtype is not Dtype.ENCODED


def test_an_image_that_no_node_would_take_is_refused_here() -> None:
    with pytest.raises(InputError, match="expected at most"):
        image_request(bytes(5 << 20), mask=0, run_id=0, number=1)
