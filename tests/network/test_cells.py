"""Two whole cells behind the HAProxy example of ``deploy/``: together faster than one, and none lost when one dies."""

from __future__ import annotations

import http.client
import json
import math
import os
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from tests.support.cell import tiny_devices

from devit_contract.artefacts.manifest import Bundle, Preprocess, write_manifest
from devit_pipeline.local_cell import LocalCell

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
INFER = "/v2/models/devit/infer"
SHAPE = (224, 224, 3)
"""Of the paper's models, and what the example's buffers are sized for."""
ASKERS = 8
DEADLINE_S = 30.0
NOWHERE = "127.0.0.1:9"  # the discard port: nobody listens

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs HAProxy: apt install haproxy"),
]


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, said to take images of 224 x 224 pixels: paced engines do not look at them."""
    folder = tmp_path_factory.mktemp("bundle") / "large"
    shutil.copytree(TINY, folder)
    preprocess = Preprocess(height=SHAPE[0], width=SHAPE[1], colour="rgb")
    write_manifest(folder, msgspec.structs.replace(Bundle(TINY).manifest, preprocess=preprocess))
    return folder


@pytest.fixture
def cells(tmp_path: Path, large_bundle: Path) -> Iterator[list[LocalCell]]:
    """Two cells of two agents each, whose engines take 20 ms an image (SIMULATED), and a gateway for each."""
    with ExitStack() as stack:
        devices = tiny_devices("paced:20")
        yield [
            stack.enter_context(LocalCell(large_bundle, tmp_path / name, devices, http="127.0.0.1:0"))
            for name in ("cell1", "cell2")
        ]


@pytest.fixture
def proxy() -> Iterator[Callable[..., str]]:
    """Start HAProxy as the example's first line says; give its HOST:PORT once every cell that lives is found ready."""
    with ExitStack() as stack:
        yield lambda *cells: stack.enter_context(running_proxy(cells))


@contextmanager
def running_proxy(cells: Sequence[str]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = {f"DEVIT_CELL_{number}": cell for number, cell in enumerate(cells, 1)}
        environment |= {"DEVIT_LISTEN": f"fd@{listener.fileno()}", "DEVIT_TOKEN": ""}
        child = subprocess.Popen(
            ["haproxy", "-db", "-q", "-f", str(CONFIG)], env=os.environ | environment, pass_fds=[listener.fileno()]
        )
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            child.kill()
            child.wait(DEADLINE_S)


def host_of(cell: LocalCell) -> str:
    return urlsplit(cell.http_url).netloc


@dataclass
class Load:
    """Askers in a closed loop, one image of 150,528 bytes a request, each over one connection, until told to stop."""

    host: str
    statuses: Counter[int] = field(default_factory=Counter)
    answered: int = 0
    """Those with status 200 and the request's own id; a busy machine's deadline may leave one of two devices out."""
    wrong: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self) -> Iterator[Load]:
        with ThreadPoolExecutor(ASKERS) as pool:
            asked = [pool.submit(self._ask, number) for number in range(ASKERS)]
            try:
                yield self
            finally:
                self._over.set()
            for one in asked:
                one.result(DEADLINE_S)

    def wait_for(self, answers: int) -> None:
        """Wait until so many more have been answered."""
        wanted, end_s = self.answered + answers, time.monotonic() + DEADLINE_S
        while self.answered < wanted:
            assert time.monotonic() < end_s, (self.statuses, self.wrong[:3])
            self._over.wait(0.005)

    def _ask(self, asker: int) -> None:
        pixels = bytes(math.prod(SHAPE))
        tensor = {"name": "image", "shape": [1, *SHAPE], "datatype": "UINT8"}
        tensor["parameters"] = {"binary_data_size": len(pixels)}
        connection = http.client.HTTPConnection(self.host, timeout=DEADLINE_S)
        number = 0
        while not self._over.is_set():
            number += 1
            name = f"{asker}-{number}"
            outputs = [{"name": "state", "parameters": {"binary_data": False}}]
            head = json.dumps({"id": name, "inputs": [tensor], "outputs": outputs}).encode()
            connection.request("POST", INFER, head + pixels, {"Inference-Header-Content-Length": str(len(head))})
            answer = connection.getresponse()
            text = answer.read()
            found = json.loads(text) if answer.status == 200 else {}
            states = [output["data"] for output in found.get("outputs", ()) if output["name"] == "state"]
            with self._lock:
                self.statuses[answer.status] += 1
                if found.get("id") == name and states in ([["full"]], [["partial"]]):
                    self.answered += 1
                else:
                    self.wrong.append(f"{answer.status} {text[:200]!r}")
        connection.close()


def answers_a_second(host: str, answers: int = 300) -> float:
    with Load(host).running() as load:
        load.wait_for(50)
        start_s = time.monotonic()
        load.wait_for(answers)
        return answers / (time.monotonic() - start_s)


def test_the_example_is_a_valid_configuration() -> None:
    cells = {"DEVIT_LISTEN": "127.0.0.1:8000", "DEVIT_CELL_1": NOWHERE, "DEVIT_CELL_2": NOWHERE, "DEVIT_TOKEN": "x"}
    done = subprocess.run(["haproxy", "-c", "-f", str(CONFIG)], env=os.environ | cells, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_cells_answer_nearly_twice_as_much_as_one(cells: list[LocalCell], proxy: Callable[..., str]) -> None:
    first, second = map(host_of, cells)
    one, both = proxy(first, NOWHERE), proxy(first, second)
    rates = [answers_a_second(host) for host in (one, both, one, both)]
    ratio = min(rates[1], rates[3]) / max(rates[0], rates[2])
    print(f"answers/s with one, two, one, two cells: {[f'{rate:.1f}' for rate in rates]}; ratio {ratio:.2f}")
    assert ratio >= 1.7


def frames_of(cell: LocalCell) -> int:
    with cell.client() as client:
        return sum(client.status().frames.values())


def test_a_cell_that_dies_in_any_way_costs_no_request(cells: list[LocalCell], proxy: Callable[..., str]) -> None:
    """The node first, so that its gateway answers 503; when it is back, all processes of the other cell at once."""
    first, second = cells
    host = proxy(host_of(first), host_of(second))
    with Load(host).running() as load:
        load.wait_for(100)
        first.kill("node")
        load.wait_for(200)
        first.start_node()
        before, end_s = frames_of(first), time.monotonic() + DEADLINE_S
        while frames_of(first) < before + 20:  # it has its share again
            assert time.monotonic() < end_s
            load.wait_for(10)
        for name in list(second.pids):
            second.kill(name)
        load.wait_for(200)
    print(f"statuses over the whole run: {dict(load.statuses)}")
    assert load.wrong == []
    assert load.statuses.keys() == {200}
