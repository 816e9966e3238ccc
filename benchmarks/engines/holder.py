"""A process that holds one engine and nothing else: it runs for as many seconds as each line of its input says.

python -m benchmarks.engines.holder MODEL.onnx HEIGHT WIDTH CHANNELS OUTPUTS [hold]

It answers each line by a line of JSON: what each image took, in microseconds. With ``hold`` it keeps the file's bytes,
as the engine of version 211bfe4 did.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from devit_engines.engine import EngineSpec
from devit_engines.ort import OrtEngine

_WARM_UP = 3


def main(path: str, height: str, width: str, channels: str, outputs: str, *hold: str) -> None:
    """Load the engine, then serve until the input ends."""
    shape = (int(height), int(width), int(channels))
    held = [Path(path).read_bytes()]
    with OrtEngine(held[0] if hold else held.pop(), EngineSpec(path, shape, int(outputs))) as engine:
        engine.warm_up(_WARM_UP)
        image = np.resize(np.arange(251, dtype=np.uint8), (1, *shape))  # numpy.random would take 8 MB
        print("[]", flush=True)  # noqa: T201 - the protocol
        for line in sys.stdin:
            end_s, taken_us = time.monotonic() + float(line), list[float]()
            while not taken_us or time.monotonic() < end_s:
                start_s = time.perf_counter()
                engine.features(image)
                taken_us.append((time.perf_counter() - start_s) * 1e6)
            print(json.dumps(taken_us), flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main(*sys.argv[1:])
