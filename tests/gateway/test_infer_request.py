"""Bodies of inference requests, by themselves: what is read, and that nothing but InputError ever comes of them."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devit_contract.errors import InputError
from devit_gateway.infer_request import MAX_BATCH, InferRequest, WantedOutput, max_body_bytes, parse_request

SHAPE = (2, 3, 1)
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, *SHAPE)
DEEP = b"[" * 100_000


def tensor(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - what JSON can hold
    """The input with all pixels; a change to ``None`` takes a field away."""
    fields = {"name": "image", "shape": [2, *SHAPE], "datatype": "UINT8", "data": PIXELS.ravel().tolist()} | changes
    return {name: value for name, value in fields.items() if value is not None}


def parse(request: dict[str, Any], binary: bytes | None = None) -> InferRequest:
    head = json.dumps(request).encode()
    if binary is None:
        return parse_request(head, None, SHAPE)
    return parse_request(head + binary, str(len(head)), SHAPE)


@pytest.mark.parametrize("data", [PIXELS.ravel().tolist(), PIXELS.tolist()], ids=["flat", "nested"])
def test_numbers_in_json_are_images(data: list[int]) -> None:
    np.testing.assert_array_equal(parse({"inputs": [tensor(data=data)]}).images, PIXELS)


def test_bytes_behind_the_json_are_images() -> None:
    request = {"inputs": [tensor(data=None, parameters={"binary_data_size": 12})]}
    found = parse(request, PIXELS.tobytes()).images
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS)


def test_without_further_wishes_all_outputs_come_as_json_of_all_devices() -> None:
    found = parse({"inputs": [tensor()]})
    assert found.outputs == (WantedOutput("logits", False), WantedOutput("state", False), WantedOutput("mask", False))
    assert (found.request_id, found.device_mask, found.policy) == (None, 0, None)


def test_wishes_are_read_and_foreign_parameters_left_alone() -> None:
    request = {
        "id": "frame 7",
        "parameters": {"devices": 0b10, "policy": "certain", "binary_data_output": True, "priority": 3, "timeout": 1.5},
        "inputs": [tensor(parameters={"note": "mine"})],
        "outputs": [
            {"name": "mask"},
            {"name": "logits", "parameters": {"binary_data": False, "classification": 3}},
        ],
        "something": {"new": [1]},
    }
    found = parse(request)
    assert (found.request_id, found.device_mask, found.policy) == ("frame 7", 0b10, "certain")
    assert found.outputs == (WantedOutput("mask", True), WantedOutput("logits", False, 3))


@pytest.mark.parametrize(
    ("request_body", "binary", "says"),
    [
        ({}, None, "inputs"),
        ({"inputs": []}, None, "inputs: expected one"),
        ({"inputs": [tensor(), tensor()]}, None, "inputs: expected one"),
        ({"inputs": [tensor(name="picture")]}, None, "found 1: picture"),
        ({"inputs": [tensor(datatype="FP32")]}, None, "datatype UINT8, found FP32"),
        ({"inputs": [tensor(shape=[12])]}, None, "expected shape"),
        ({"inputs": [tensor(shape=[2, 3, 2, 1])]}, None, "expected shape"),
        ({"inputs": [tensor(shape=[0, *SHAPE], data=[])]}, None, "expected shape"),
        ({"inputs": [tensor(shape=[MAX_BATCH + 1, *SHAPE])]}, None, "expected shape"),
        ({"inputs": [tensor(shape=[-2, *SHAPE])]}, None, "expected shape"),
        ({"inputs": [tensor(shape=[2.0, *SHAPE])]}, None, "shape[0]"),
        ({"inputs": [tensor(data=None)]}, None, "neither"),
        ({"inputs": [tensor(data=None, parameters={"shared_memory_region": "a"})]}, None, "neither"),
        ({"inputs": [tensor(parameters={"binary_data_size": 12})]}, PIXELS.tobytes(), "both"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 12})]}, b"x" * 11, "expected 12 bytes"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 12})]}, b"x" * 13, "expected 12 bytes"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 11})]}, b"x" * 11, "expected 12 bytes"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 12})]}, None, "expected 12 bytes"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": -1})]}, None, "binary_data_size"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": True})]}, b"x", "whole number"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 12.0})]}, PIXELS.tobytes(), "binary_data_size"),
        ({"inputs": [tensor()]}, b"left over", "found 9 after"),
        ({"inputs": [tensor(data=[0] * 11)]}, None, "12 whole numbers"),
        ({"inputs": [tensor(data=[[0] * 3, [0] * 9])]}, None, "12 whole numbers"),
        ({"inputs": [tensor(data=[[0] * 6, [0] * 6])]}, None, "12 whole numbers"),
        ({"inputs": [tensor(data=[0] * 11 + [256])]}, None, "0 to 255"),
        ({"inputs": [tensor(data=[0] * 11 + [-1])]}, None, "0 to 255"),
        ({"inputs": [tensor(data=[0] * 11 + [2**80])]}, None, "numbers"),
        ({"inputs": [tensor(data=[0.5] * 12)]}, None, "whole numbers"),
        ({"inputs": [tensor(data=["a"] * 12)]}, None, "whole numbers"),
        ({"inputs": [tensor(data=[None] * 12)]}, None, "whole numbers"),
        ({"inputs": [tensor(data={"a": 1})]}, None, "whole numbers"),
        ({"inputs": [tensor(data=7)]}, None, "whole numbers"),
        ({"inputs": [tensor(data=[True] + [0] * 11)]}, None, "got `bool`"),
        ({"inputs": [tensor(data=[[[[True]] * 3] * 2] * 2)]}, None, "got `bool`"),
        ({"inputs": [tensor()], "id": 7}, None, "id"),
        ({"inputs": [tensor()], "parameters": {"devices": -1}}, None, "devices"),
        ({"inputs": [tensor()], "parameters": {"devices": 1.0}}, None, "devices"),
        ({"inputs": [tensor()], "parameters": {"devices": "1"}}, None, "devices"),
        ({"inputs": [tensor()], "parameters": {"devices": True}}, None, "devices"),
        ({"inputs": [tensor()], "parameters": {"devices": 2**64}}, None, "devices"),
        ({"inputs": [tensor()], "parameters": {"devices": [1]}}, None, "parameters"),
        ({"inputs": [tensor()], "parameters": {"policy": "some"}}, None, "all, certain, single, replica, found some"),
        ({"inputs": [tensor()], "parameters": {"policy": 2}}, None, "policy"),
        ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, None, "true or false"),
        ({"inputs": [tensor()], "outputs": [{"name": "softmax"}]}, None, "found softmax"),
        ({"inputs": [tensor()], "outputs": [{"name": "mask"}, {"name": "mask"}]}, None, "each once"),
        ({"inputs": [tensor()], "outputs": [{}]}, None, "name"),
        ({"inputs": [tensor()], "outputs": [{"name": "mask", "parameters": {"classification": 1}}]}, None, "logits"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, None, "classi"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]}, None, "true"),
    ],
)
def test_what_does_not_fit_is_named(request_body: dict[str, Any], binary: bytes | None, says: str) -> None:
    with pytest.raises(InputError) as raised:
        parse(request_body, binary)
    assert says in str(raised.value)
    assert "expected" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "length", ["-1", "", "x", "1e2", "+5", "9" * 40, "100000", "\u0663", " 5", "5 5"], ids=lambda text: ascii(text)
)
def test_a_header_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        parse_request(b"x" * 500, length, SHAPE)


def test_what_a_stranger_sent_is_shown_short_and_in_one_line() -> None:
    with pytest.raises(InputError) as raised:
        parse({"inputs": [tensor(name="a\nb\u2028c" * 10_000)]})
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)
    assert str(raised.value).isascii()


def test_null_stands_for_what_is_not_given() -> None:
    """As clients send it that write all their fields."""
    nothing = {"parameters": None}
    request = {"id": None, "outputs": None, "inputs": [tensor() | nothing]} | nothing
    assert parse(request).outputs == parse({"inputs": [tensor()]}).outputs
    parameters = {"binary_data_output": None, "devices": None}
    outputs = [{"name": "mask", "parameters": {"binary_data": None, "classification": None}}]
    found = parse(
        {"inputs": [tensor(parameters={"binary_data_size": None})], "parameters": parameters, "outputs": outputs}
    )
    assert (found.device_mask, found.outputs) == (0, (WantedOutput("mask", False),))
    request = {"inputs": [tensor(parameters={"binary_data_size": 12}) | {"data": None}]}
    np.testing.assert_array_equal(parse(request, PIXELS.tobytes()).images, PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        b'["' + b"a" * 20_000 + b'"' + b',""' * 300_000 + b"]",
        b"[0" + b",0" * 2_000_000 + b"]",
        b"[" + b" " * 2_000_000 + b"0]",
        b"[[0]" + b",[]" * 1_000_000 + b"]",
        b"[[[[0" + b",0" * 1_000_000 + b"]]]]",
        b"[[[[0]" + b",[0]" * 1_000_000 + b"]]]",
    ],
    ids=["one long text", "too many", "blanks", "too many images", "too many channels", "too many columns"],
)
def test_what_is_no_image_takes_hardly_more_memory_than_its_body(data: bytes) -> None:
    body = b'{"inputs":[{"name":"image","shape":[2,2,3,1],"datatype":"UINT8","data":' + data + b"}]}"
    tracemalloc.start()
    with pytest.raises(InputError, match="12 whole numbers"):
        parse_request(body, None, SHAPE)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4_000_000


@pytest.mark.parametrize(
    "fields",
    [
        b'"inputs":[' + b",".join([b'{"name":"","shape":[],"datatype":""}'] * 50_000) + b"]",
        b'"inputs":[{"name":"image","shape":[1' + b",1" * 1_000_000 + b'],"datatype":"UINT8"}]',
        b'"inputs":[],"outputs":[' + b",".join([b'{"name":"mask"}'] * 100_000) + b"]",
        b'"inputs":[{}],"parameters":{' + b",".join(b'"%d":1' % number for number in range(200_000)) + b"}",
    ],
    ids=["inputs", "shape", "outputs", "parameters"],
)
def test_what_is_long_beside_its_pixels_is_not_read(fields: bytes) -> None:
    body = b"{" + fields + b"}"
    tracemalloc.start()
    with pytest.raises(InputError):
        parse_request(body, None, SHAPE)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100_000


def test_many_numbers_take_little_more_memory_than_their_pixels() -> None:
    """A list of them would take eight times as much."""
    shape = (224, 224, 3)
    row = b"[" + b", ".join([b"255"] * (8 * math.prod(shape))) + b"]"
    body = b'{"inputs":[{"name":"image","shape":[8,224,224,3],"datatype":"UINT8","data":' + row + b"}]}"
    tracemalloc.start()
    images = parse_request(body, None, shape).images
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.min() == 255
    assert peak_bytes < images.nbytes + 3_000_000


def test_a_full_batch_fits_the_bound_even_with_blanks() -> None:
    full = np.full((MAX_BATCH, 224, 224, 3), 255, np.uint8)
    data = "[" + ", ".join(["255"] * full.size) + "]"
    assert len(data) + 1000 < max_body_bytes((224, 224, 3))


@given(content=st.binary(max_size=300), length=st.none() | st.integers(-2, 400).map(str) | st.text(max_size=5))
@example(content=DEEP, length=None)
@example(content=b'{"inputs":' + DEEP, length=None)
@example(content=b'{"inputs":[],"x":' + DEEP, length=None)
@example(content=b"\xff\xfe{}", length="2")
@example(content=b'{"inputs":[{"name":"\xff"}]}', length=None)
def test_any_bytes_are_a_request_or_an_input_error(content: bytes, length: str | None) -> None:
    with pytest.raises(InputError):
        parse_request(content, length, SHAPE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("image") | st.just("UINT8"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@given(field=FIELDS, value=JSON, outer=st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), JSON))
@example(field="data", value=[[[[[[0] * 12]]]]], outer={})
@example(field="shape", value=[2**70, 2, 3, 1], outer={})
@example(field="data", value=json.loads("[" * 60 + "1" + "]" * 60), outer={})
def test_any_json_is_a_request_or_an_input_error(field: str, value: object, outer: dict[str, Any]) -> None:
    request = {"inputs": [tensor() | {field: value}]} | outer
    try:
        found = parse(request)
    except InputError:
        return
    assert found.images.shape == (2, *SHAPE)
