"""Runs one engine back to back for as long as its parent requests, and reports how long each image took.

It is a process of its own: the engine's context ends with it, and neither process disturbs the other's timing. Its
messages are in :mod:`devit_engines.bench.child`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import BackendChoice, Precision
from devit_contract.errors import DevitError
from devit_engines.bench.child import Failed, Line, Ready, TimedRun
from devit_engines.board import detect_board
from devit_engines.building.backends import RunSettings
from devit_engines.building.store import Store
from devit_engines.choice import open_engine
from devit_engines.engine import Engine, ModelRef

_WARM_UP_RUNS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Serve timed runs; returns 0 when standard input is closed, 1 after a named failure."""
    options = _parser().parse_args(argv)
    try:
        bundle = Bundle(options.bundle)
        opened = open_engine(
            options.engine,
            bundle,
            Store(options.store),
            options.submodel,
            backend=options.backend,
            precision=options.precision,
            settings=RunSettings(threads=options.threads),
        )
        with opened.engine as engine:
            engine.warm_up(_WARM_UP_RUNS)
            board = detect_board()
            _print(Ready(opened.title, board.name, board.l4t or "", str(bundle), engine.image_shape, options.threads))
            image = np.random.default_rng(0).integers(0, 256, (1, *engine.image_shape), np.uint8)
            for line in sys.stdin:
                _print(timed_run(engine, image, float(line)))
    except DevitError as err:
        _print(Failed(str(err)))
        return 1
    return 0


def timed_run(
    engine: Engine, image: UInt8Array, duration_s: float, clock_ns: Callable[[], int] = time.monotonic_ns
) -> TimedRun:
    """Run a warm engine back to back with one image ``(1, H, W, C)``.

    After ``duration_s`` no further inference begins; at least one is made.
    """
    taken_us: list[int] = []
    start_ns = before_ns = clock_ns()
    until_ns = start_ns + round(duration_s * 1e9)
    while before_ns < until_ns or not taken_us:
        engine.features(image)
        after_ns = clock_ns()
        taken_us.append(round((after_ns - before_ns) / 1000))
        before_ns = after_ns
    return TimedRun(start_ns, before_ns, taken_us)


def _model(text: str) -> ModelRef:
    return "baseline" if text == "baseline" else int(text)


def _print(line: Line) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run an engine back to back for as long as standard input requests.")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder")
    parser.add_argument("--submodel", type=_model, default=0, help="which one, or baseline (default: 0)")
    parser.add_argument("--store", type=Path, help="engine store (default: ~/.cache/devit/engines)")
    parser.add_argument("--backend", choices=get_args(BackendChoice), default="auto", help="(default: auto)")
    parser.add_argument("--precision", choices=get_args(Precision), help="lowest (default: what devit build kept)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of ONNX Runtime (default: 1)")
    parser.add_argument("--engine", default="built", help="built (default), built:MS, null, paced:MS or busy:MS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
