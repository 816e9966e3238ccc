"""From ``agent.toml`` to a warm engine: signature, bundle, memory, engine, warm-up."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from devit_contract.artefacts.keys import KeyPair, load_keys
from devit_contract.artefacts.manifest import Bundle, Preprocess
from devit_contract.choices import Variant
from devit_contract.errors import EngineError, InputError
from devit_contract.extras import own_version
from devit_contract.machine import available_bytes, board_compatible, clocks, more_memory, power_mode
from devit_contract.wire.messages import Description, Hello
from devit_edge_agent.config import AgentConfig, load_agent_config
from devit_engines.accuracy import require_accuracy
from devit_engines.board import detect_board
from devit_engines.building.backends import RunSettings
from devit_engines.building.store import Store
from devit_engines.choice import OpenedEngine, is_built, open_engine
from devit_engines.engine import Engine, ModelRef, closed_on_failure

_OF_THE_ENGINE = ("bundle", "store", "threads", "backend", "precision", "cuda", "host_memory", "allowed_signers")
"""What another engine in the same process may change."""
_WARM_UP_RUNS = 3
_SPARE_BYTES = 64 << 20
"""Beside the engine, for what runs it."""


@dataclass(frozen=True)
class Settings:
    """What holds for the whole process."""

    path: Path
    """``agent.toml``."""
    config: AgentConfig
    engine_choice: str
    """As of :func:`devit_engines.choice.open_engine`."""
    keys: KeyPair | None


@dataclass(frozen=True)
class Loaded:
    """An engine, warm, and what goes with it."""

    engine: Engine
    bundle: Bundle
    hello: Hello
    description: Description
    variant: Variant
    doubt: str = ""
    """As of :class:`~devit_engines.choice.OpenedEngine`."""

    @property
    def preprocess(self) -> Preprocess:
        """How a picture file becomes an image."""
        return self.bundle.manifest.preprocess

    @property
    def has_own_view(self) -> bool:
        """Whether it was trained on what this device's own camera shows."""
        return self.bundle.manifest.views == "own"


def read_settings(path: Path, engine_choice: str) -> Settings:
    """Read ``agent.toml`` and the key it names.

    Raises:
        InputError: A file, name or key is not usable.
        ManifestError: ``agent.toml`` breaks its format.
    """
    config = load_agent_config(path)
    keys = load_keys(Path(config.secret_key)) if config.secret_key else None
    return Settings(path, config, engine_choice, keys)


def read_again(settings: Settings) -> Settings:
    """Read ``agent.toml`` again, for another engine in the same process.

    Raises:
        InputError: As :func:`read_settings`, or something changed that belongs to the process and not to the engine.
        ManifestError: ``agent.toml`` breaks its format.
    """
    fresh = read_settings(settings.path, settings.engine_choice)
    before, now = msgspec.structs.asdict(settings.config), msgspec.structs.asdict(fresh.config)
    changed = [name for name in before if name not in _OF_THE_ENGINE and now[name] != before[name]]
    if fresh.keys != settings.keys and "secret_key" not in changed:
        changed.append("the content of secret_key")
    if changed:
        raise InputError(
            f"{settings.path}: only {', '.join(_OF_THE_ENGINE)} may change while the agent runs, "
            f"not {', '.join(changed)}: restart the agent, or undo that"
        )
    return fresh


def load(settings: Settings, tell: Callable[[str], None] = lambda _step: None) -> Loaded:
    """Load the engine of the bundle that ``agent.toml`` names now, and warm it; each step is told as it begins.

    Raises:
        InputError: A file is not usable, or the bundle is older than one that this device has run.
        ManifestError: The bundle is broken, or not signed by whom ``allowed_signers`` lists.
        EngineError: The engine was not built on this device, or memory is short.
    """
    config = settings.config
    tell("checking the bundle")
    store = Store(Path(config.store) if config.store else None)
    if config.allowed_signers:
        from devit_contract.artefacts.signing import MEMORY_NAME, open_admitted

        bundle, _ = open_admitted(Path(config.bundle), Path(config.allowed_signers), store.folder / MEMORY_NAME)
    else:
        bundle = Bundle(Path(config.bundle))
    tell("loading the engine")
    opened = _open(settings, bundle, store, config.submodel)
    tell("warming the engine up")
    with closed_on_failure(opened.engine):
        opened.engine.warm_up(_WARM_UP_RUNS)
        return _described(config, bundle, opened)


def self_check(settings: Settings, loaded: Loaded) -> None:
    """Send the golden images through a loaded engine, as the build did: it may not be what it was then.

    Raises:
        EngineError: It fails, or does not compute what was trained.
        ManifestError: The golden images are not usable.

    Whatever is raised, the engine is closed.
    """
    if not is_built(settings.engine_choice):
        return
    with closed_on_failure(loaded.engine):
        require_accuracy(loaded.engine, loaded.bundle, settings.config.submodel, loaded.variant, loaded.hello.engine)


def open_baseline(settings: Settings, bundle: Bundle) -> tuple[str, Engine]:
    """Load the bundle's baseline model beside what serves, send the golden images through it, and warm it.

    Raises:
        EngineError: The bundle has none, it was not built on this device, does not compute what was trained, or memory
            is short.
        ManifestError: The golden images are not usable.
    """
    config = settings.config
    store = Store(Path(config.store) if config.store else None)
    if bundle.manifest.baseline is None:
        raise EngineError(
            f"{bundle.folder}: expected the baseline model (baseline), found none: take a bundle that was exported "
            "from a decomposition"
        )
    opened = _open(settings, bundle, store, "baseline")
    with closed_on_failure(opened.engine):
        if is_built(settings.engine_choice):
            require_accuracy(opened.engine, bundle, "baseline", opened.variant, opened.title)
        opened.engine.warm_up(_WARM_UP_RUNS)
        return opened.title, opened.engine


def describe(loaded: Loaded, root: Path) -> Description:
    """Tell what an agent says of its device, with the power mode and the clocks of now."""
    mode = power_mode(root)
    return msgspec.structs.replace(
        loaded.description,
        power_mode=str(mode) if mode is not None else "",
        clocks=tuple(str(clock) for clock in clocks(root)),
        is_root=os.geteuid() == 0,
    )


def _open(settings: Settings, bundle: Bundle, store: Store, model: ModelRef) -> OpenedEngine:
    config, golden_bytes = settings.config, bundle.manifest.file("golden").size_bytes or 0
    return open_engine(
        settings.engine_choice,
        bundle,
        store,
        model,
        backend=config.backend,
        precision=config.precision,
        settings=RunSettings(
            threads=config.threads,
            cuda=config.cuda,
            host_memory=config.host_memory,
        ),
        check_size=lambda size_bytes: _check_memory(2 * (size_bytes + golden_bytes), Path(config.root)),
    )


def _described(config: AgentConfig, bundle: Bundle, opened: OpenedEngine) -> Loaded:
    hello = Hello(
        name=config.name,
        submodel=config.submodel,
        feature_dim=opened.engine.output_dim,
        model_sha256=opened.model_sha256,
        engine=opened.title,
        feature_dtypes=("float32", "float16"),
        software=own_version(),
        can_withdraw=True,
        image_codings=("jpeg", "lossless"),
        lacks_source=bundle.manifest.views == "own" and not config.source,
    )
    board = detect_board(Path(config.root))
    description = Description(
        board.name,
        board.l4t or "",
        opened.title,
        " ".join(config.tegrastats),
        config.threads,
        board_choice=config.board,
        compatible=board_compatible(Path(config.root)),
        gpu_instance=board.gpu_instance,
    )
    return Loaded(opened.engine, bundle, hello, description, opened.variant, opened.doubt)


def _check_memory(engine_bytes: int, root: Path) -> None:
    """Refuse before the kernel's killer chooses: it would take whatever is largest, and say nothing to us.

    CPU and GPU of a Jetson share their memory, and a control group does not see what CUDA takes.
    """
    needed = engine_bytes + _SPARE_BYTES
    found = available_bytes(root if (root / "proc/meminfo").exists() else Path("/"))
    if found < needed:
        raise EngineError(
            f"expected {needed >> 20} MiB of free memory for the engine, found {found >> 20} MiB: {more_memory(root)}"
        )
