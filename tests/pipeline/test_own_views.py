"""Devices with views of their own, from the recipe to answers: real training, bundle, engines and processes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devit_contract.arrays import Float32Array, Int64Array
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Policy
from devit_contract.errors import InputError
from devit_contract.service.progress import no_progress
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import State
from devit_decompose.evaluation.evaluate import Evaluation, data_of, evaluate, load_cell
from devit_decompose.models_folder.subset_accuracy import joined_features
from devit_decompose.recipe.reader import load_recipe
from devit_decompose.stages import decompose
from devit_edge_agent.sources.views import write_views
from devit_edge_agent.start import NO_SOURCE
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_export.bundle import export_bundle
from devit_pipeline.local_cell import LocalCell, LocalDevice

pytestmark = pytest.mark.system

TESTS = 120
RECIPE = """
schema = 2
name = "own"
seed = 1
submodels = 4
threads = 1
views = "own"
view = {{ share = 0.6, turn_degrees = 8.0 }}
partition = {{ method = "none" }}
[data]
name = "Squares"
folder = "{folder}"
size = [12, 12]
classes = ["a", "b", "c", "d"]
mean = [0.2]
std = [0.2]
validation_images = 400
sample_images = 40
[teacher]
stem = [{{ width = 8, stride = 2 }}, {{ width = 16, stride = 2 }}]
depth = 1
heads = 1
mlp_ratio = 1.0
[[students]]
stem = [{{ width = 8, stride = 2 }}, {{ width = 16, stride = 2 }}]
depth = 1
heads = 1
mlp_ratio = 1.0
[train]
{schedule}[distil]
answer = {{ label_weight = 0.5, teacher_weight = 0.5, temperature = 2.0 }}
[distil.schedule]
{schedule}[ensemble]
answer = {{ label_weight = 1.0, teacher_weight = 0.0 }}
failout = 0.25
failout_weight = 0.4
[ensemble.schedule]
{schedule}"""
SCHEDULE = """learning_rate = 4e-3
batch = 50
max_epochs = 3
decay_epochs = 3
patience = 0
augment = { flip = false }
"""


@dataclass(frozen=True)
class Made:
    """Trained models, their bundle, and what each device sees of the test images."""

    bundle: Bundle
    store: Path
    figures: Evaluation
    features: Float32Array
    labels: Int64Array
    folders: list[Path]

    def classes(self, mask: int) -> Int64Array:
        """What these devices answer to each test image, ``(n,)``."""
        return Fusion(self.bundle.fusion_head()).batch_logits(self.features, mask).argmax(axis=1)


def write_scenes(folder: Path, prefix: str, count: int, seed: int) -> None:
    """Noise, and a bright square whose corner tells the class: who does not see that corner can only guess."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.uint8) % 4
    images = generator.integers(0, 90, (count, 12, 12), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 7 * (label // 2) + generator.integers(0, 3), 7 * (label % 2) + generator.integers(0, 3)
        image[row : row + 3, column : column + 3] += 90
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 12, 12) + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Go the way of a user: recipe, devit decompose, evaluate, export, build, views."""
    folder = tmp_path_factory.mktemp("own")
    write_scenes(folder, "train", 1600, 1)
    write_scenes(folder, "t10k", TESTS, 2)
    (folder / "own.toml").write_text(RECIPE.format(folder=folder, schedule=SCHEDULE))
    models = folder / "models"
    decompose(load_recipe(folder / "own.toml"), models, resume=False, progress=no_progress)
    figures = evaluate(models, data=None, against=None, progress=no_progress)
    export_bundle(models, folder / "bundle")
    bundle, store, test = Bundle(folder / "bundle"), Store(folder / "store"), data_of(models, None).test
    build_engines(bundle, store, backend="ort", precision="fp32")
    (folder / "scenes").mkdir()
    for number, image in enumerate(test.images[:]):
        Image.fromarray(image[:, :, 0]).save(folder / "scenes" / f"{number:04}.png")
    folders = write_views(bundle, sorted((folder / "scenes").iterdir()), folder / "views")
    features = joined_features(load_cell(models).submodels, test.images)
    return Made(bundle, store.folder, figures, features, test.labels, folders)


@pytest.fixture(scope="module")
def cell(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    """Four agents, each with its folder of pictures for a camera."""
    devices = [
        LocalDevice(f"jetson{device}", device, source=f"folder:{folder}") for device, folder in enumerate(made.folders)
    ]
    settings = "startup_grace_ms = 10000\n[certain]\nflips = 0.1\naudit = 1.0\n"
    folder = tmp_path_factory.mktemp("cell")
    with LocalCell(made.bundle.folder, folder, devices, store=made.store, deadline_ms=5000, settings=settings) as cell:
        yield cell


def one_round(client: Client, policy: Policy) -> list[Answer]:
    """Trigger as often as there are pictures: frame 1 takes the first, and so on round and round."""
    return list(client.stream([None] * TESTS, in_flight=2, policy=policy))


def test_the_manifest_names_each_view_and_its_golden_features_are_of_that_view(made: Made) -> None:
    manifest, golden = made.bundle.manifest, made.bundle.golden()
    assert manifest.views == "own"
    views = [graph.view for graph in manifest.submodels]
    assert [(view.top, view.left, view.height) for view in views if view is not None] == [
        (0, 0, 8),
        (0, 4, 8),
        (4, 0, 8),
        (4, 4, 8),
    ]
    assert manifest.baseline is not None
    assert manifest.baseline.view is None  # it sees the whole scene
    assert golden["images"].shape == (40, 12, 12, 1)


def test_the_answers_served_are_those_evaluated_whatever_the_policy(made: Made, cell: LocalCell) -> None:
    with cell.client() as client:
        for policy in ("all", "certain"):
            answers = one_round(client, policy)
            assert all(answer.logits is not None for answer in answers)
            expected = [made.classes(answer.mask)[number] for number, answer in enumerate(answers)]
            found = [int(answer.logits.argmax()) for answer in answers if answer.logits is not None]
            assert found == expected  # so all its devices saw the same scene
            if policy == "all":
                right = 100 * float(np.mean(np.array(found) == made.labels))
                print(f"served: {right:.2f} % right; devit evaluate: {made.figures.fused_accuracy:.2f} %")
                assert right == pytest.approx(made.figures.fused_accuracy)
                assert right > made.figures.subsets["0"] + 10
            else:
                asked = [answer.mask.bit_count() for answer in answers]
                assert 1 in asked
                assert max(asked) > 1  # asked later, about the moment of the first
        status = client.status()
        assert status.views == "own"
        assert status.promise is not None
        assert status.promise.audited  # by devices that had kept the moment
        assert not status.promise.is_broken
        assert [device.lacks_source for device in status.devices] == [False] * 4


def test_a_request_with_an_image_is_refused_with_what_to_do(made: Made, cell: LocalCell) -> None:
    with cell.client() as client, pytest.raises(InputError, match="uses its own camera, found one: ask with devit"):
        client.classify(made.bundle.golden()["images"][0])


def test_with_a_device_gone_the_accuracy_is_that_of_the_table_and_back_again_it_is_in_step(
    made: Made, cell: LocalCell
) -> None:
    with cell.client() as client:
        cell.kill("jetson1")
        answers = one_round(client, "all")
        start = next(number for number, answer in enumerate(answers) if answer.mask == 0b1101)
        assert start < 3  # the death is noticed at once
        found = [int(answer.logits.argmax()) for answer in answers[start:] if answer.logits is not None]
        assert found == made.classes(0b1101)[start:].tolist()
        right = 100 * float(np.mean(made.classes(0b1101) == made.labels))
        assert right == pytest.approx(made.figures.subsets["0,2,3"])
        cell.start_agents(["jetson1"])
        answers = one_round(client, "all")
        assert {answer.state for answer in answers} == {State.FULL}
        assert [int(answer.logits.argmax()) for answer in answers if answer.logits is not None] == made.classes(
            0b1111
        ).tolist()


def test_an_agent_without_a_camera_says_so_at_its_start_and_in_the_status(made: Made, tmp_path: Path) -> None:
    devices = [LocalDevice("jetson0", 0, source=f"folder:{made.folders[0]}"), LocalDevice("jetson1", 1)]
    with (
        LocalCell(made.bundle.folder, tmp_path, devices, store=made.store, deadline_ms=5000) as cell,
        cell.client() as client,
    ):
        assert [device.lacks_source for device in client.status().devices] == [False, True]
        (answer,) = islice(client.stream([None]), 1)
        assert answer.missing[1] == "no_source"
        assert NO_SOURCE in cell.log_path("jetson1").read_text()
        assert NO_SOURCE not in cell.log_path("jetson0").read_text()
