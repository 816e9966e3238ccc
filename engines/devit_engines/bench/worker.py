"""Runs one engine back to back, for as long as whoever started it asks, and tells how long each image took.

It is a process of its own: the engine's context ends with it, and neither disturbs the other's timing. What the two
say to each other stands in :mod:`devit_engines.bench.messages`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError, InputError
from devit_engines.bench.messages import Failed, Line, Ready, Stint
from devit_engines.board import detect_board
from devit_engines.building.backends import BACKENDS, RunSettings
from devit_engines.building.build_all import load_engine, stored_key
from devit_engines.building.store import Store
from devit_engines.engine import Engine, EngineSpec
from devit_engines.null import NullEngine, PacedEngine, busy


def main(argv: Sequence[str] | None = None) -> int:
    """Serve stints until standard input is closed.

    Returns:
        0 when it is, 1 after a named failure.
    """
    options = _parser().parse_args(argv)
    try:
        bundle = Bundle(options.bundle)
        title, engine = _open(bundle, options)
        with engine:
            engine.warm_up(_WARM_UP_RUNS)
            board = detect_board()
            _print(Ready(title, board.name, board.l4t or "", str(bundle), engine.image_shape, options.threads))
            image = np.random.default_rng(0).integers(0, 256, (1, *engine.image_shape), np.uint8)
            for line in sys.stdin:
                _print(stint(engine, image, float(line)))
    except DevitError as err:
        _print(Failed(str(err)))
        return 1
    return 0


def stint(
    engine: Engine, image: UInt8Array, duration_s: float, clock_ns: Callable[[], int] = time.monotonic_ns
) -> Stint:
    """Run an engine back to back.

    Args:
        engine: Warm.
        image: Shape ``(1, H, W, C)``.
        duration_s: Until the first inference that ends so much later; at least one is made.
        clock_ns: Monotonic.
    """
    taken_us: list[int] = []
    start_ns = before_ns = clock_ns()
    until_ns = start_ns + round(duration_s * 1e9)
    while before_ns < until_ns or not taken_us:
        engine.features(image)
        after_ns = clock_ns()
        taken_us.append(round((after_ns - before_ns) / 1000))
        before_ns = after_ns
    return Stint(start_ns, before_ns, taken_us)


_WARM_UP_RUNS = 3


def _open(bundle: Bundle, options: argparse.Namespace) -> tuple[str, Engine]:
    """Give what the engine is called, and the engine."""
    submodel: int = options.submodel
    kind, _, pace = options.engine.partition(":")
    if options.engine == "built":
        store, settings = Store(options.store), RunSettings(threads=options.threads)
        key = stored_key(bundle, store, submodel, backend=options.backend, precision=options.precision)
        engine = load_engine(
            bundle, store, submodel, backend=key.backend, precision=options.precision, settings=settings
        )
        return f"{BACKENDS[key.backend].title} {key.backend_version}, {key.rung}", engine
    if kind == "busy" and pace.replace(".", "", 1).isdigit():
        graph = bundle.manifest.graph("submodel", submodel)
        spec = EngineSpec(options.engine, bundle.manifest.preprocess.shape, graph.output_dim)
        return f"{options.engine} engine", PacedEngine(NullEngine(spec), float(pace), wait=busy)
    raise InputError(f"--engine {options.engine}: expected built, or busy:MS, e.g. busy:5")


def _print(line: Line) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run an engine back to back for as long as is asked.")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder")
    parser.add_argument("--submodel", type=int, default=0, help="which one (default: 0)")
    parser.add_argument("--store", type=Path, help="engine store (default: ~/.cache/devit/engines)")
    parser.add_argument("--backend", default="auto", help="tensorrt, ort or auto (default)")
    parser.add_argument("--precision", default="fp16", help="fp16 (default) or fp32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of ONNX Runtime (default: 1)")
    parser.add_argument("--engine", default="built", help="built (default), or busy:MS: a core is busy so long")
    return parser


if __name__ == "__main__":
    sys.exit(main())
