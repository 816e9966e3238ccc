"""From ``agent.toml`` to a connected agent: bundle, engine, warm-up, introduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from devit_contract.errors import InputError
from devit_contract.fleet import AgentConfig, load_agent_config
from devit_contract.keys import load_keys
from devit_contract.manifest import Bundle
from devit_contract.messages import Description, Hello
from devit_edge_agent.agent import EdgeAgent
from devit_engines.backends import BACKENDS, RunSettings
from devit_engines.board import detect_board
from devit_engines.build import load_engine, stored_key
from devit_engines.engine import Engine, EngineSpec
from devit_engines.null import NullEngine, PacedEngine
from devit_engines.store import Store

_WARM_UP_RUNS = 3


@contextmanager
def open_agent(path: Path, engine_choice: str, report: Callable[[str], None]) -> Iterator[EdgeAgent]:
    """Load and warm the engine, then connect.

    Args:
        path: ``agent.toml``.
        engine_choice: ``built``, ``null`` or ``paced:MS``.
        report: Takes one line for people when the link changes.

    Raises:
        InputError: A file, name or key is not usable.
        ManifestError: ``agent.toml`` or the bundle is broken.
        EngineError: The engine was not built on this device.
    """
    config = load_agent_config(path)
    keys = load_keys(Path(config.secret_key)) if config.secret_key else None
    bundle = Bundle(Path(config.bundle))
    digest, name, engine = _open_engine(config, bundle, engine_choice)
    with engine:
        engine.warm_up(_WARM_UP_RUNS)
        hello = Hello(
            name=config.name,
            submodel=config.submodel,
            feature_dim=engine.output_dim,
            model_sha256=digest,
            engine=name,
            feature_dtypes=("float32",),
            software=version("devit"),
        )
        board = detect_board(Path(config.root))
        description = Description(board.name, board.l4t or "", name, " ".join(config.tegrastats), config.threads)
        with EdgeAgent(
            config,
            engine,
            preprocess=bundle.manifest.preprocess,
            hello=hello,
            description=description,
            keys=keys,
            report=report,
        ) as agent:
            yield agent


def _open_engine(config: AgentConfig, bundle: Bundle, choice: str) -> tuple[str, str, Engine]:
    """Digest of the graph, what the engine is called, and the engine."""
    if choice == "built":
        store = Store(Path(config.store) if config.store else None)
        key = stored_key(bundle, store, config.submodel, backend=config.backend, precision=config.precision)
        settings = RunSettings(threads=config.threads, cuda=config.cuda, host_memory=config.host_memory)
        engine = load_engine(
            bundle, store, config.submodel, backend=key.backend, precision=config.precision, settings=settings
        )
        return key.model_sha256, f"{BACKENDS[key.backend].title} {key.backend_version}, {key.rung}", engine
    digest = bundle.manifest.file("submodel", device=config.submodel, rung="fp32").sha256
    record = bundle.manifest.graph("submodel", config.submodel)
    spec = EngineSpec(choice, bundle.manifest.preprocess.shape, record.output_dim, revision=0)
    kind, _, number = choice.partition(":")
    if choice == "null":
        return digest, "null engine", NullEngine(spec)
    if kind == "paced" and number.replace(".", "", 1).isdigit():
        return digest, f"{choice} engine", PacedEngine(NullEngine(spec), float(number))
    raise InputError(f"--engine {choice}: expected built, null or paced:MS, e.g. paced:5")
