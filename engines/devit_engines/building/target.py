"""One graph of a bundle, for one back end on one board: its keys, its file, and the command that builds it."""

from __future__ import annotations

from dataclasses import dataclass

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Precision, Role
from devit_contract.errors import ManifestError
from devit_engines.board import Board
from devit_engines.building.backends import Backend, BuildRequest
from devit_engines.building.store import EngineKey, Store, default_folder
from devit_engines.engine import EngineSpec


@dataclass(frozen=True)
class Job:
    """One graph of the bundle, for one back end on one board."""

    bundle: Bundle
    store: Store
    device: int | None
    """Index of the submodel; absent for the baseline."""
    backend: Backend
    board: Board
    precision: Precision = "fp16"
    """``fp16``: every rung in turn; ``fp32``: that one alone."""

    @property
    def role(self) -> Role:
        """Of its files in the manifest."""
        return "baseline" if self.device is None else "submodel"

    @property
    def name(self) -> str:
        """For messages: ``submodel 0``, ``baseline``."""
        return self.role if self.device is None else f"{self.role} {self.device}"

    @property
    def command(self) -> str:
        """What the user runs to make this engine."""
        graph = "--baseline" if self.device is None else f"--submodels {self.device}"
        store = "" if self.store.folder == default_folder() else f" --store {self.store.folder}"
        return f"devit build {self.bundle.folder} {graph}{store}"

    def engine_keys(self) -> list[EngineKey]:
        """List the keys of the rungs that the back end takes, in the manifest's order.

        Raises:
            ManifestError: There is no such rung.
            EngineError: The back end is not installed.
        """
        offered = self.bundle.manifest.graph(self.role, self.device).rungs
        rungs = [rung for rung in offered if rung in self.backend.rungs and self.precision in ("fp16", rung)]
        if not rungs:
            raise ManifestError(
                f"{self.name}: back end {self.backend.name} takes {', '.join(self.backend.rungs)}, the bundle holds "
                f"{', '.join(offered)}: make the bundle again with devit export"
            )
        version = self.backend.version()
        return [
            EngineKey(
                model_sha256=self.bundle.manifest.file(self.role, device=self.device, rung=rung).sha256,
                backend=self.backend.name,
                backend_version=version,
                device_name=self.board.name,
                compute_capability=self.board.compute_capability,
                rung=rung,
                options=self.backend.options,
            )
            for rung in rungs
        ]

    def spec(self, key: EngineKey) -> EngineSpec:
        """Say what the engine of a key has to be."""
        manifest = self.bundle.manifest
        output_dim = manifest.graph(self.role, self.device).output_dim
        return EngineSpec(self.name, manifest.preprocess.shape, output_dim, key.revision)

    def request(self, key: EngineKey) -> BuildRequest:
        """Say what the engine of a key is built from.

        Raises:
            InputError: A file cannot be read.
            ManifestError: A file has another digest than the manifest, or the bundle has no rung fp32.
        """
        return BuildRequest(
            name=self.name,
            rung=key.rung,
            graph=self.bundle.read(self.role, device=self.device, rung=key.rung),
            plain_graph=self.bundle.read(self.role, device=self.device, rung="fp32"),
            fp32_nodes=self.bundle.manifest.graph(self.role, self.device).fp32_nodes.get(key.rung, ()),
            board=self.board,
            store=self.store.folder,
            drafts=self.store.folder / f".{key.digest}.",
        )
