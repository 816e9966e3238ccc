"""The stock client of the inference protocol, as it is, against a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.gateway.running import Gateway

from devit_contract.artefacts.manifest import Bundle

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")

Images = npt.NDArray[np.uint8]


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Any]:
    found = triton.InferenceServerClient(gateway.host, concurrency=4)
    yield found
    found.close()


def image_input(images: Images, *, binary: bool = True) -> list[Any]:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return [tensor]


def test_server_and_model_are_live_and_ready(client: Any) -> None:  # noqa: ANN401 - it ships no types
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("devit")
    assert client.is_model_ready("devit", "1")
    assert not client.is_model_ready("resnet")


def test_server_and_model_tell_what_they_are(client: Any) -> None:  # noqa: ANN401 - as above
    server = client.get_server_metadata()
    assert server["name"] == "devit-gateway"
    assert {"binary_tensor_data", "classification", "statistics", "model_configuration"} <= set(server["extensions"])
    model = client.get_model_metadata("devit")
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 6, 8, 1]}]
    assert {output["name"]: (output["datatype"], output["shape"]) for output in model["outputs"]} == {
        "logits": ("FP32", [-1, 4]),
        "state": ("BYTES", [-1]),
        "mask": ("UINT32", [-1]),
    }
    config = client.get_model_config("devit", "1")
    assert config["input"][0]["dims"] == [6, 8, 1]
    assert config["max_batch_size"] == 64


@pytest.mark.parametrize("is_binary_in", [True, False])
@pytest.mark.parametrize("is_binary_out", [True, False])
def test_answers_are_the_golden_logits(
    client: Any,  # noqa: ANN401 - as above
    bundle: Bundle,
    images: Images,
    is_binary_in: bool,
    is_binary_out: bool,
) -> None:
    wishes = [triton.InferRequestedOutput(name, binary_data=is_binary_out) for name in ("mask", "logits", "state")]
    found = client.infer("devit", image_input(images, binary=is_binary_in), outputs=wishes, request_id="a 1")
    np.testing.assert_allclose(found.as_numpy("logits"), bundle.golden()["logits"], atol=1e-4)
    assert found.as_numpy("mask").tolist() == [3] * 64
    assert {bytes(state) if is_binary_out else str(state).encode() for state in found.as_numpy("state")} == {b"full"}
    assert found.get_response()["id"] == "a 1"


@pytest.mark.parametrize("request_algorithm", ["gzip", "deflate", None])
@pytest.mark.parametrize("response_algorithm", ["gzip", "deflate", None])
def test_both_bodies_may_be_compressed(
    client: Any,  # noqa: ANN401 - as above
    bundle: Bundle,
    images: Images,
    request_algorithm: str | None,
    response_algorithm: str | None,
) -> None:
    found = client.infer(
        "devit",
        image_input(images[:3]),
        model_version="1",
        request_compression_algorithm=request_algorithm,
        response_compression_algorithm=response_algorithm,
    )
    np.testing.assert_allclose(found.as_numpy("logits"), bundle.golden()["logits"][:3], atol=1e-4)


def test_requests_may_be_under_way_at_once(client: Any, bundle: Bundle, images: Images) -> None:  # noqa: ANN401 - as above
    under_way = [client.async_infer("devit", image_input(images[index : index + 1])) for index in range(16)]
    for index, request in enumerate(under_way):
        logits = request.get_result(timeout=30).as_numpy("logits")
        np.testing.assert_allclose(logits, bundle.golden()["logits"][index : index + 1], atol=1e-4)


def test_classes_come_by_name(client: Any, bundle: Bundle, images: Images) -> None:  # noqa: ANN401 - as above
    wish = [triton.InferRequestedOutput("logits", class_count=2)]
    found = client.infer("devit", image_input(images[:4]), outputs=wish).as_numpy("logits")
    assert found.shape == (4, 2)
    best = np.asarray(bundle.golden()["logits"])[:4].argmax(axis=1)
    labels = ("up", "down", "left", "right")
    assert [bytes(text).decode().split(":")[1:] for text in found[:, 0]] == [[str(k), labels[k]] for k in best]


def test_devices_can_be_chosen(client: Any, images: Images) -> None:  # noqa: ANN401 - as above
    found = client.infer("devit", image_input(images[:1]), parameters={"devices": 0b01})
    assert (found.as_numpy("state").tolist(), found.as_numpy("mask").tolist()) == ([b"partial"], [0b01])


def test_statistics_count_images_and_requests(client: Any, images: Images) -> None:  # noqa: ANN401 - as above
    def counts() -> tuple[int, int, int]:
        (found,) = client.get_inference_statistics("devit")["model_stats"]
        stats = found["inference_stats"]
        return found["inference_count"], stats["success"]["count"], stats["fail"]["count"]

    before = counts()
    client.infer("devit", image_input(images[:5]))
    with pytest.raises(triton.InferenceServerException):
        client.infer("devit", image_input(images[:, :5]))
    assert np.subtract(counts(), before).tolist() == [5, 1, 1]
    assert client.get_inference_statistics()["model_stats"][0]["name"] == "devit"


def test_a_mistake_is_told_in_one_line(client: Any, images: Images) -> None:  # noqa: ANN401 - as above
    with pytest.raises(triton.InferenceServerException, match=r"expected shape \[1 to 64, 6, 8, 1\]") as raised:
        client.infer("devit", image_input(images[:, :5]))
    assert raised.value.status() == "400"
    with pytest.raises(triton.InferenceServerException, match="expected the model devit") as raised:
        client.infer("resnet", image_input(images))
    assert raised.value.status() == "404"
