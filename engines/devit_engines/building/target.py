"""One model of a bundle, for one back end on one board: its keys, its files, and the command that builds it."""

from __future__ import annotations

from dataclasses import dataclass

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Precision, Variant, is_at_least
from devit_contract.errors import ManifestError
from devit_engines.accuracy import verdict_digest
from devit_engines.board import Board
from devit_engines.building.backends import Backend
from devit_engines.building.store import EngineKey, EngineRecord, Store, default_folder
from devit_engines.engine import EngineSpec, ModelRef, name_of, role_of
from devit_engines.trt.request import BuildRequest, GraphFile
from devit_engines.trt.timing_cache import timing_cache_path


@dataclass(frozen=True)
class Target:
    """One model of the bundle, for one back end on one board."""

    bundle: Bundle
    store: Store
    model: ModelRef
    backend: Backend
    board: Board
    precision: Precision = "fp16"

    @property
    def name(self) -> str:
        """For messages: ``submodel 0``, ``baseline``."""
        return name_of(self.model)

    @property
    def title(self) -> str:
        """For people: ``submodel 0 of fashion-mnist``."""
        return f"{self.name} of {self.bundle.manifest.name}"

    @property
    def command(self) -> str:
        """What the user runs to make this engine."""
        graph = "--baseline" if self.model == "baseline" else f"--submodels {self.model}"
        store = "" if self.store.folder == default_folder() else f" --store {self.store.folder}"
        return f"devit build {self.bundle.folder} {graph}{store}"

    def engine_keys(self) -> list[EngineKey]:
        """List the keys of the variants that the back end takes, in the manifest's order.

        Raises:
            ManifestError: There is no such variant.
            EngineError: The back end is not installed.
        """
        offered = self.bundle.manifest.graph(*role_of(self.model)).variants
        takes = [variant for variant in self.backend.variants if is_at_least(variant, self.precision)]
        variants = [variant for variant in offered if variant in takes]
        if not variants:
            raise ManifestError(
                f"{self.name}: back end {self.backend.name} takes {', '.join(takes)}, the bundle holds "
                f"{', '.join(offered)}: make the bundle again with devit export"
            )
        version = self.backend.version()
        return [
            EngineKey(
                model_sha256=self._graph(variant).sha256,
                backend=self.backend.name,
                backend_version=version,
                device_name=self.board.device_name,
                compute_capability=self.board.compute_capability,
                variant=variant,
                options=self.backend.options,
            )
            for variant in variants
        ]

    def spec(self, key: EngineKey) -> EngineSpec:
        """Say what the engine of a key has to be."""
        manifest = self.bundle.manifest
        return EngineSpec(
            self.name, manifest.preprocess.shape, manifest.graph(*role_of(self.model)).output_dim, key.revision
        )

    def objection(self, record: EngineRecord) -> str:
        """Say why an intact engine of the store is not this bundle's, and what to run; empty where it is."""
        folder, bundle = self.store.folder / record.key.digest, self.bundle.folder
        if self.is_other_graph(record):
            return f"{folder}: the engine is another graph than that of {bundle}: run {self.command}"
        if verdict_digest(self.bundle, record.file.sha256) not in record.validated_against:
            return f"{folder}: the engine was not validated with the golden images of {bundle}: run {self.command}"
        return ""

    def is_other_graph(self, record: EngineRecord) -> bool:
        """Whether an engine that has to be the bundle's ONNX file is another one: a record may say anything."""
        return self.backend.is_onnx and record.file.sha256 != record.key.model_sha256

    def request(self, key: EngineKey) -> BuildRequest:
        """Say what the engine of a key is built from.

        Raises:
            ManifestError: The bundle has no variant fp32.
        """
        store = self.store.folder
        cache = timing_cache_path(store, key.backend_version, key.device_name, key.compute_capability)
        return BuildRequest(
            name=self.name,
            variant=key.variant,
            compute_capability=key.compute_capability,
            graph=self._graph(key.variant),
            fp32_graph=self._graph("fp32"),
            fp32_nodes=self.bundle.manifest.graph(*role_of(self.model)).fp32_nodes.get(key.variant, ()),
            timing_cache=str(cache),
            temp_prefix=str(store / f".{key.digest}."),
        )

    def _graph(self, variant: Variant) -> GraphFile:
        role, index = role_of(self.model)
        path = self.bundle.path(role, device=index, variant=variant)
        return GraphFile(str(path), self.bundle.manifest.file(role, device=index, variant=variant).sha256)
