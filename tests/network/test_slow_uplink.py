"""Large images over a slow uplink of the node: ``auto`` has clients code them, and stays with that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.network.bundles import write_null_bundle
from tests.network.faults import redirect
from tests.network.namespaces import shaped_pair

from devit_contract.wire.codec import State
from devit_pipeline.local_cell import LocalCell, LocalDevice

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
NEAR, FAR = "10.79.0.1", "10.79.0.2"
SHAPE = (224, 224, 3)
RATE_MBIT = 50.0
"""An image takes two devices 48 ms raw, whatever the machine does meanwhile, and a twentieth of that as JPEG."""


def test_images_over_a_slow_uplink_are_coded_after_some_frames_and_no_answer_is_lost(tmp_path: Path) -> None:
    image = np.indices(SHAPE, np.uint8).sum(axis=0, dtype=np.uint8)  # (224, 224, 3)
    write_null_bundle(tmp_path / "bundle", (4, 4), 3, SHAPE)
    devices = [LocalDevice(f"jetson{index}", index, engine="null") for index in range(2)]
    cell = LocalCell(tmp_path / "bundle", tmp_path / "cell", devices, deadline_ms=5000)
    with shaped_pair((f"{NEAR}/30", f"{FAR}/30"), RATE_MBIT) as (near, far), near.inside(), cell:
        for name in ("node", *cell.devices):
            cell.kill(name)
        old = cell.fleet.node.endpoint
        new = old.replace("127.0.0.1", NEAR)
        cell.fleet_path.write_text(cell.fleet_path.read_text().replace(old, new))
        cell.start_node()
        for name in cell.devices:
            redirect(cell, name, new)
        with far.inside():
            cell.start_agents(list(cell.devices))
        with cell.client() as client:
            assert client.status().images == "raw"
            answers = [client.classify(image) for _ in range(40)]
            assert client.status().images == "jpeg"
            answers += [client.classify(image) for _ in range(60)]
            status = client.status()
    assert {answer.state for answer in answers} == {State.FULL}
    assert (status.images, status.image_choice) == ("jpeg", "auto")
    for device in status.devices:
        assert device.image_us["jpeg"] < device.image_us["raw"]
