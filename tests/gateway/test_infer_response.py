"""Bodies of inference responses, by themselves, read back by the stock client's own code."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from devit_contract.wire.answer import Answer
from devit_contract.wire.codec import State
from devit_gateway.infer_request import InferRequest, WantedOutput
from devit_gateway.infer_response import write_response

LABELS = ("up", "down", "left")
LOGITS = np.array([[0.5, -1.25, 3.0], [1.0, 1.0, -2.0]], np.float32)


def answer(row: int, state: State, mask: int) -> Answer:
    return Answer(state, mask, LOGITS[row], 0.001, (), {}, 0, 0, 0)


ANSWERS = [answer(0, State.FULL, 0b11), answer(1, State.PARTIAL, 0b01)]


def request(*outputs: WantedOutput, request_id: str | None = None) -> InferRequest:
    return InferRequest(request_id, np.zeros((2, 2, 3, 1), np.uint8), 0, None, outputs)


def test_json_holds_every_output_in_the_order_wished_for() -> None:
    wishes = (WantedOutput("mask", False), WantedOutput("state", False), WantedOutput("logits", False))
    body, json_bytes = write_response(request(*wishes, request_id="a"), ANSWERS, LABELS, 2)
    assert json_bytes is None
    assert json.loads(body) == {
        "model_name": "devit",
        "model_version": "1",
        "id": "a",
        "outputs": [
            {"name": "mask", "datatype": "UINT32", "shape": [2], "data": [3, 1]},
            {"name": "state", "datatype": "BYTES", "shape": [2], "data": ["full", "partial"]},
            {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [0.5, -1.25, 3.0, 1.0, 1.0, -2.0]},
        ],
    }


def test_binary_data_is_little_endian_and_texts_carry_their_length() -> None:
    wishes = (WantedOutput("logits", True), WantedOutput("state", True), WantedOutput("mask", True))
    body, json_bytes = write_response(request(*wishes), ANSWERS, LABELS, 2)
    assert json_bytes is not None
    head = json.loads(body[:json_bytes])
    assert "id" not in head
    assert [output["parameters"] for output in head["outputs"]] == [
        {"binary_data_size": 24},
        {"binary_data_size": 19},
        {"binary_data_size": 8},
    ]
    expected = struct.pack("<6f", 0.5, -1.25, 3.0, 1.0, 1.0, -2.0)
    expected += b"\x04\0\0\0full\x07\0\0\0partial" + struct.pack("<2I", 3, 1)
    assert body[json_bytes:] == expected


def test_the_stock_client_reads_a_mix_of_json_and_binary() -> None:
    client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    wishes = (WantedOutput("logits", True), WantedOutput("state", False), WantedOutput("mask", True))
    body, json_bytes = write_response(request(*wishes), ANSWERS, LABELS, 2)
    found = client.InferResult.from_response_body(body, header_length=json_bytes)
    np.testing.assert_array_equal(found.as_numpy("logits"), LOGITS)
    assert found.as_numpy("state").tolist() == ["full", "partial"]
    assert found.as_numpy("mask").tolist() == [3, 1]


def test_the_best_classes_come_by_name_the_best_first() -> None:
    body, _ = write_response(request(WantedOutput("logits", False, classes=2)), ANSWERS, LABELS, 2)
    (output,) = json.loads(body)["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["3.000000:2:left", "0.500000:0:up", "1.000000:0:up", "1.000000:1:down"]


def test_more_classes_than_there_are_means_all() -> None:
    body, _ = write_response(request(WantedOutput("logits", False, classes=9)), ANSWERS, LABELS, 2)
    assert json.loads(body)["outputs"][0]["shape"] == [2, 3]


def test_a_mask_of_many_devices_is_wide_enough() -> None:
    body, _ = write_response(request(WantedOutput("mask", False)), [answer(0, State.PARTIAL, 1 << 63)], LABELS, 64)
    (output,) = json.loads(body)["outputs"]
    assert (output["datatype"], output["data"]) == ("UINT64", [1 << 63])
