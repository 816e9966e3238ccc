"""Ray Serve: composed deployments, a front with a handle to each worker; the client has a handle too, without HTTP."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import ANSWER_S, Queued, Reply
from benchmarks.peers.work import Work

from devit_contract.arrays import UInt8Array

ROOT = Path(__file__).parents[2]
IN_FLIGHT = 64
"""What Ray Serve lets one replica have under way: more than any client here sends."""


class RayServe(Queued):
    """Client -> front -> workers, each a replica in a process of its own."""

    name = "Ray Serve"
    needs = ("ray",)

    def start(self, stack: ExitStack) -> None:
        """Start Ray and the application."""
        os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        ray.init(
            num_cpus=self.work.devices + 2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=80 << 20,
        )
        stack.callback(ray.shutdown)
        options: dict[str, Any] = {"max_ongoing_requests": IN_FLIGHT, "num_replicas": 1}
        workers = [
            serve.deployment(Worker, name=f"worker{device}", **options).bind(self.work, device)
            for device in range(self.work.devices)
        ]
        front = serve.deployment(Front, name="front", **options).bind(self.work, *workers)
        self._handle = serve.run(front, name="cell", route_prefix=None)

    def ask(self, image: UInt8Array) -> Reply:
        """Call, and wait."""
        return self.reply(self._handle.remote(image.tobytes()).result(timeout_s=ANSWER_S))

    def submit(self, image: UInt8Array, number: int) -> None:
        """Call, and have a thread wait: Ray Serve's responses know no callbacks outside an event loop."""
        threading.Thread(target=self._wait, args=(self._handle.remote(image.tobytes()), number), daemon=True).start()

    def _wait(self, response: Any, number: int) -> None:  # noqa: ANN401 - Ray's responses are not typed
        try:
            response.result(timeout_s=ANSWER_S)
            self.done.put(number)
        except Exception as err:
            self.done.put(err)


class Worker:
    """One submodel."""

    def __init__(self, work: Work, device: int) -> None:
        """Load the engine."""
        self._answer = work.worker(device)

    async def __call__(self, image: bytes) -> bytes:
        """Answer one image."""
        return self._answer(image)


class Front:
    """Asks all workers, and fuses."""

    def __init__(self, work: Work, *workers: Any) -> None:  # noqa: ANN401
        """Keep a handle to each."""
        self._fuse, self._workers = work.front(), workers

    async def __call__(self, image: bytes) -> bytes:
        """Answer one image."""
        features = [worker.remote(image) for worker in self._workers]
        return self._fuse([await feature for feature in features])
