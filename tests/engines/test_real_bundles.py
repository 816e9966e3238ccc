"""The bundle that the repository ships builds and passes its own gate on this computer."""

from __future__ import annotations

from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store

SHIPPED = Path(__file__).parents[2] / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"


def test_the_shipped_bundle_passes_its_check_and_answers(store: Store) -> None:
    bundle = Bundle(SHIPPED)
    built = build_engines(bundle, store, baseline=bundle.manifest.baseline is not None)
    for engine in built:
        assert engine.record.accuracy.flips_above_margin == 0
        with load_engine(bundle, store, engine.model) as loaded:
            loaded.warm_up(1)
