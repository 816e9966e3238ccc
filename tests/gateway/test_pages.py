"""A real gateway before a real cell, asked by hand-made HTTP: right answers, and bounds for everything else."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.running import DEADLINE_S, INFER, Gateway, as_json
from tests.support.properties import examples

from devit_contract.artefacts.manifest import Bundle
from devit_gateway.infer_request import MAX_BATCH, max_body_bytes

Images = npt.NDArray[np.uint8]
MAX_BODY_BYTES = max_body_bytes((6, 8, 1))


def outputs(page: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    return {str(output["name"]): output["data"] for output in page["outputs"]}


def test_json_is_answered_with_the_golden_logits(gateway: Gateway, bundle: Bundle, images: Images) -> None:
    reply = gateway.ask(INFER, as_json(images, id="seven"))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    page = reply.json()
    found = outputs(page)
    logits = np.reshape(np.array(found["logits"], np.float32), (64, 4))
    np.testing.assert_allclose(logits, bundle.golden()["logits"], atol=1e-4)
    assert (page["model_name"], page["model_version"], page["id"]) == ("devit", "1", "seven")
    assert found["state"] == ["full"] * 64
    assert found["mask"] == [0b11] * 64


def test_binary_both_ways_is_answered_with_the_golden_logits(gateway: Gateway, bundle: Bundle, images: Images) -> None:
    parameters = {"binary_data_size": images.nbytes}
    tensor = {"name": "image", "shape": images.shape, "datatype": "UINT8", "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = gateway.ask(
        "/v2/models/devit/versions/1/infer", head + images.tobytes(), Inference_Header_Content_Length=str(len(head))
    )
    assert reply.status == 200
    json_bytes = int(reply.headers["inference-header-content-length"])
    logits = np.frombuffer(reply.body, "<f4", count=64 * 4, offset=json_bytes).reshape(64, 4)
    np.testing.assert_allclose(logits, bundle.golden()["logits"], atol=1e-4)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_may_be_compressed_both_ways(
    gateway: Gateway, images: Images, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    plain = as_json(images[:2])
    reply = gateway.ask(INFER, pack(plain), Content_Encoding=encoding, Accept_Encoding=encoding)
    assert (reply.status, reply.headers["content-encoding"]) == (200, encoding)
    unpacked = zlib.decompress(reply.body, 47)
    assert json.loads(unpacked) == gateway.ask(INFER, plain).json()


def test_devices_can_be_chosen(gateway: Gateway, images: Images) -> None:
    found = outputs(gateway.ask(INFER, as_json(images[:1], parameters={"devices": 0b10})).json())
    assert (found["state"], found["mask"]) == (["partial"], [0b10])


def test_devices_that_are_not_there_are_refused_by_the_node(gateway: Gateway, images: Images) -> None:
    reply = gateway.ask(INFER, as_json(images[:2], parameters={"devices": 0b100}))
    assert reply.status == 400
    assert "expected devices 0 to 1" in reply.json()["error"]


def test_only_the_outputs_wished_for_come(gateway: Gateway, images: Images) -> None:
    wish = {"name": "logits", "parameters": {"classification": 1}}
    (output,) = gateway.ask(INFER, as_json(images[:2], outputs=[wish])).json()["outputs"]
    assert output["shape"] == [2, 1]
    assert {text.split(":")[2] for text in output["data"]} <= {"up", "down", "left", "right"}


def test_many_requests_at_once_each_get_their_own_answer(gateway: Gateway, bundle: Bundle, images: Images) -> None:
    expected = np.asarray(bundle.golden()["logits"])

    def ask(index: int) -> None:
        found = outputs(gateway.ask(INFER, as_json(images[index : index + 1])).json())
        np.testing.assert_allclose(np.array(found["logits"]), expected[index], atol=1e-4)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(64)))


def test_an_answer_is_not_held_back_by_the_kernel(gateway: Gateway, images: Images) -> None:
    """With Nagle's algorithm, an answer in two parts takes 40 ms, always."""
    durations_s = []
    with closing(http.client.HTTPConnection(gateway.host, timeout=DEADLINE_S)) as connection:
        for _ in range(20):
            start_s = time.perf_counter()
            connection.request("POST", INFER, as_json(images[:1]))
            connection.getresponse().read()
            durations_s.append(time.perf_counter() - start_s)
    assert min(durations_s) < 0.035


def test_more_images_than_the_node_has_room_for_wait_here(gateway: Gateway, images: Images) -> None:
    """Five full batches at once are 320 images; the node would refuse the 67th."""
    with ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(lambda _: gateway.ask(INFER, as_json(images)), range(5)))
    assert [reply.status for reply in replies] == [200] * 5


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/livez", {"live": True}),
        ("/readyz", {"ready": True}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/devit/ready", {"name": "devit", "ready": True}),
    ],
)
def test_a_healthy_cell_is_live_and_ready_in_the_words_of_the_protocol(
    gateway: Gateway, path: str, page: dict[str, object]
) -> None:
    reply = gateway.ask(path)
    assert (reply.status, reply.json()) == (200, page)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/models/resnet/ready", "/v2/models/devit/versions/2", "/v2/models/resnet/infer", "/docs"]
)
def test_what_is_not_there_is_404_in_json(gateway: Gateway, path: str) -> None:
    reply = gateway.ask(path, method="POST" if path.endswith("infer") else "GET")
    assert reply.status == 404
    assert set(reply.json()) == {"error"}


def test_another_method_is_405_in_json(gateway: Gateway) -> None:
    reply = gateway.ask(INFER)
    assert (reply.status, set(reply.json())) == (405, {"error"})


def test_metrics_are_read_by_prometheus_own_parser_and_count(gateway: Gateway, images: Images) -> None:
    def frames() -> float:
        text = gateway.ask("/metrics").body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        outcomes = {sample.labels["outcome"]: sample.value for sample in families["devit_frames"].samples}
        return outcomes.get("full", 0.0)

    before = frames()
    assert gateway.ask(INFER, as_json(images[:5])).status == 200
    assert frames() - before == 5


@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 1, 10**18])
def test_a_body_that_says_to_be_too_long_is_refused_unread(gateway: Gateway, length: int) -> None:
    with socket.create_connection(gateway.address, DEADLINE_S) as link:
        link.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        assert link.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_read_up_to_the_bound(gateway: Gateway) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 4096 + 1):
            yield b" " * 4096

    assert gateway.ask(INFER, chunks()).status == 413


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_bomb_is_refused(gateway: Gateway, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    reply = gateway.ask(INFER, pack(bytes(20_000_000)), Content_Encoding=encoding)
    assert reply.status == 413
    assert f"at most {MAX_BODY_BYTES} bytes" in reply.json()["error"]


def test_what_is_not_the_compression_it_says_is_refused(gateway: Gateway) -> None:
    assert gateway.ask(INFER, b"{}", Content_Encoding="gzip").status == 400
    assert gateway.ask(INFER, gzip.compress(b"{}")[:-4], Content_Encoding="gzip").status == 400
    assert gateway.ask(INFER, b"{}", Content_Encoding="br").status == 415


def test_a_batch_that_is_too_large_is_refused(gateway: Gateway) -> None:
    reply = gateway.ask(INFER, as_json(np.zeros((MAX_BATCH + 1, 6, 8, 1), np.uint8)))
    assert reply.status == 400
    assert f"[1 to {MAX_BATCH}, 6, 8, 1]" in reply.json()["error"]


def test_a_body_that_is_cut_off_harms_nobody(gateway: Gateway, images: Images) -> None:
    with socket.create_connection(gateway.address, DEADLINE_S) as link:
        link.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    assert gateway.ask(INFER, as_json(images[:1])).status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
        b"POST /v2/models/devit/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v2/models/devit/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/devit/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["header without an end", "TLS", "two lengths", "negative length", "no chunk"],
)
def test_what_is_no_http_is_refused(gateway: Gateway, head: bytes) -> None:
    with socket.create_connection(gateway.address, DEADLINE_S) as link:
        link.sendall(head)
        assert link.recv(100).startswith(b"HTTP/1.1 400 ")


@examples(0.6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200) | st.sampled_from([b"{}", b"[]", b"null", b'{"inputs":[{}]}', b'{"inputs":[]}']),
    length=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6) | st.integers(-1, 300).map(str),
    encoding=st.sampled_from(["identity", "gzip", "deflate", ""]),
)
def test_any_body_is_400_never_500(gateway: Gateway, body: bytes, length: str, encoding: str) -> None:
    reply = gateway.ask(INFER, body, Inference_Header_Content_Length=length, Content_Encoding=encoding)
    assert reply.status == 400
    assert "expected" in reply.json()["error"]
