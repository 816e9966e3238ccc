"""Real nodes are recorded, with devices that err, and answer the same again."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from tests.fusion.record.recorded_cell import SHIPPED, RecordedCell

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Policy
from devit_contract.errors import InputError
from devit_fusion.record.changes import Changes
from devit_fusion.record.file import Recording
from devit_fusion.record.known import Pair
from devit_fusion.record.records import Answered, RequestCame, Snapshot
from devit_fusion.record.replay import Replay
from devit_fusion.record.stand_ins import WholeFusion
from devit_fusion.record.verdict import Limits, Tally
from devit_pipeline.replay import replay

POLICIES: tuple[Policy, ...] = ("all", "certain", "all", "replica", "certain", "single")
REQUESTS = 400
EVERYTHING = Limits(1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def erring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that begins while the cell serves, of devices that are late, skip, are silent and restart."""
    folder = tmp_path_factory.mktemp("erring")
    with ExitStack() as stack:
        cell = RecordedCell(stack, folder)
        for device in cell.devices:  # else one may be suspended, or a frame under way, for all the time there is
            device.is_calm = True
        cell.ask(60, POLICIES)
        cell.begin()
        for device in cell.devices:
            device.is_calm = False
        answers = cell.ask(REQUESTS, POLICIES)
        assert cell.stop().lost == 0
    states = Counter(answer.state.name for answer in answers)
    assert states["FULL"], states
    assert states["CERTAIN"], states
    assert states["PARTIAL"], states
    return cell.folder


def pairs(recording: Path, changes: Changes = Changes()) -> list[Pair]:  # noqa: B008 - a tuple
    bundle = Bundle(SHIPPED)
    head = bundle.fusion_head()
    run = Replay(bundle.manifest, lambda: WholeFusion(head), bundle.calibration(), changes)
    return list(run.run(Recording(recording)))


def test_a_recorded_cell_answers_the_same_bytes_again(erring: Path) -> None:
    found = pairs(erring)
    assert len(found) == REQUESTS
    for pair in found:
        # All but what was measured rather than decided.
        now = msgspec.structs.replace(pair.now, fuse_us=pair.was.fuse_us, frame_id=pair.was.frame_id)
        assert (now.logits, now.state, now.mask, now.missing) == (
            pair.was.logits,
            pair.was.state,
            pair.was.mask,
            pair.was.missing,
        )
        assert (now.asked, now.wait_us, now.collect_us, now.score) == (
            pair.was.asked,
            pair.was.wait_us,
            pair.was.collect_us,
            pair.was.score,
        )


def test_what_was_answered_is_in_the_recording(erring: Path) -> None:
    kinds = Counter(type(record) for record in Recording(erring))
    assert kinds[RequestCame] == kinds[Answered] == REQUESTS
    assert kinds[Snapshot] >= 1


def test_a_device_less_is_asked_for_nothing_and_answers_nothing(erring: Path) -> None:
    found = pairs(erring, Changes(without=frozenset([2])))
    assert len(found) == REQUESTS
    assert not any(pair.now.mask & 0b100 for pair in found)
    assert not any(pair.now.state == "full" for pair in found)
    assert any(pair.was.mask & 0b100 for pair in found)


def test_another_policy_asks_as_it_says_and_computes_what_was_not_recorded(erring: Path) -> None:
    found = replay(erring, bundle=SHIPPED, policy="all", limits=EVERYTHING)
    assert found.counts["unknown"] == 0
    assert found.now.asked > found.was.asked
    assert found.now.states["full"] > found.was.states["full"]
    alone = pairs(erring, Changes(policy="single"))
    assert all(pair.now.mask.bit_count() <= 1 for pair in alone)


def test_the_verdict_says_why(erring: Path) -> None:
    same = replay(erring, bundle=SHIPPED)
    assert (same.verdict, same.reasons, same.equal, same.flips) == ("deploy", (), REQUESTS, 0)
    strict = replay(erring, bundle=SHIPPED, policy="single", limits=Limits(flips=0.0, failed=1.0, accuracy=1.0))
    assert strict.verdict == "blocked"
    assert "flip, more than 0.00%" in strict.reasons[0]
    unsure = replay(erring, bundle=SHIPPED, without=("jetson2",), limits=Limits(0.2 / REQUESTS, 1.0, 1.0))
    assert unsure.verdict in ("review", "blocked")
    with pytest.raises(InputError, match="device 'jetson9': expected one of jetson0"):
        replay(erring, bundle=SHIPPED, without=("jetson9",))


def test_accuracies_come_from_labels_by_number_or_digest(erring: Path, tmp_path: Path) -> None:
    names = Bundle(SHIPPED).manifest.labels
    asked = [record for record in Recording(erring) if isinstance(record, RequestCame)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(f"{record.number},{names[3]}" for record in asked[:50]) + "\n")
    found = replay(erring, bundle=SHIPPED, labels=labels)
    assert found.labelled == 50
    assert found.was.accuracy == found.now.accuracy is not None
    labels.write_text("abc,none of them\n")
    with pytest.raises(InputError, match="line 1: expected KEY,LABEL with a class of the bundle"):
        replay(erring, bundle=SHIPPED, labels=labels)


def test_a_bundle_of_other_submodels_needs_the_images(tmp_path: Path) -> None:
    other = Bundle(SHIPPED).manifest
    with ExitStack() as stack:
        cell = RecordedCell(stack, tmp_path, is_calm=True)
        cell.begin(images="digest")
        cell.ask(20, ("all",))
        cell.stop()
    assert len(pairs(cell.folder)) == 20  # the same bundle needs none
    assert all(not record.image for record in Recording(cell.folder) if isinstance(record, RequestCame))
    head = Bundle(SHIPPED).fusion_head()
    changes = Changes(others=frozenset([0]), compute=lambda _device, _picture: None)
    run = Replay(other, lambda: WholeFusion(head), None, changes)
    with pytest.raises(InputError, match="images were recorded as digests alone: record with --images whole"):
        list(run.run(Recording(cell.folder)))


def test_features_of_another_bundle_are_computed_from_the_images(erring: Path) -> None:
    """The same graphs, taken for others': the CPU's features are nearly those that the devices sent."""
    from devit_pipeline.replay import features_of

    bundle = Bundle(SHIPPED)
    head = bundle.fusion_head()
    tally = Tally()
    with features_of(bundle) as compute:
        changes = Changes(others=frozenset(range(4)), compute=compute)
        run = Replay(bundle.manifest, lambda: WholeFusion(head), bundle.calibration(), changes)
        for pair in run.run(Recording(erring)):
            tally.add(pair)
    found = tally.compare(run.counts, [], EVERYTHING)
    assert found.compared == REQUESTS
    assert found.equal < REQUESTS
    assert found.flips < REQUESTS / 4  # a test's images have two pixels changed, and some frames ask others
