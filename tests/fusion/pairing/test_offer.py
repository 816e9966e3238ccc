"""What the node offers to a device that joins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.fusion.pairing.hosted import write_fleet
from tests.support.cell import TINY

from devit_contract.artefacts.fleet import Device, load_fleet
from devit_contract.artefacts.keys import new_keys
from devit_contract.artefacts.revoked import revoke, revoked_path
from devit_contract.errors import InputError
from devit_contract.wire.pairing import CHUNK_BYTES, Ask, Introduction
from devit_fusion.pairing.offer import Offer


def introduction(folder: Path, name: str) -> Introduction:
    return Introduction(name, new_keys(folder / "device", name).public.decode())


def test_a_device_gets_the_first_free_submodel_and_is_written_behind_the_others(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path)
    offer, who = Offer(fleet, TINY), introduction(tmp_path, "jetson2")
    device, welcome = offer.place(who)
    assert device == Device("jetson2", 1, who.public_key)
    assert (welcome.submodel, welcome.nodes[0].public_key) == (1, load_fleet(fleet).node.public_key)
    before = fleet.read_bytes()
    offer.enrol(device)
    assert fleet.read_bytes().startswith(before)
    assert [each.name for each in load_fleet(fleet).device] == ["jetson1", "jetson2"]
    offer.enrol(device)  # it joins again
    assert offer.place(who)[0] == device
    assert len(load_fleet(fleet).device) == 2


def test_where_every_submodel_has_a_device_one_may_join_again_and_a_spare_needs_a_submodel(
    tmp_path: Path,
) -> None:
    fleet = write_fleet(tmp_path)
    offer = Offer(fleet, TINY)
    known, spare_keys = introduction(tmp_path, "jetson2"), introduction(tmp_path, "jetson3")
    assert not offer.is_full
    offer.enrol(offer.place(known)[0])
    full = Offer(fleet, TINY)
    assert full.is_full
    assert full.place(known)[0].submodel == 1
    with pytest.raises(InputError, match="every submodel has a device: name the one of a spare with --submodel"):
        full.place(spare_keys)
    spare, _ = Offer(fleet, TINY, submodel=0).place(spare_keys)
    assert spare.submodel == 0
    with pytest.raises(InputError, match="submodel 2: the bundle has 0 to 1"):
        Offer(fleet, TINY, submodel=2)


def test_names_and_keys_of_others_are_declined(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path)
    offer, node = Offer(fleet, TINY), load_fleet(fleet).node.public_key
    jetson1 = load_fleet(fleet).device[0].public_key
    other = introduction(tmp_path, "other")
    revoke(revoked_path(fleet), other.public_key.encode(), "other")
    for name, key, reason in (
        ("jetson1", other.public_key[::-1], "expected a key|has that name with another key"),
        ("jetson1", introduction(tmp_path, "third").public_key, "has that name with another key"),
        ("jetson2", jetson1, "has its key under another name"),
        ("jetson2", node, "has its key under another name"),
        ("jetson2", other.public_key, "its key is revoked"),
        ("jetson2", "x", "expected a key of 40 Z85 characters"),
        ("../jetson2", other.public_key, "expected at most 63 small letters"),
        ('j"\n[node]', other.public_key, "expected at most 63 small letters"),
    ):
        with pytest.raises(InputError, match=reason):
            offer.place(Introduction(name, key))


def test_a_fleet_without_keys_cannot_pair(tmp_path: Path) -> None:
    path = write_fleet(tmp_path)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "public_key" not in line))
    with pytest.raises(InputError, match="expected a fleet with keys"):
        Offer(path, TINY)


def test_only_listed_files_and_whole_engines_are_offered(tmp_path: Path, store: Path) -> None:
    fleet, (digest, *_) = write_fleet(tmp_path), sorted(each.name for each in store.iterdir() if len(each.name) == 64)
    (tmp_path / "store").mkdir()
    shutil.copytree(store / digest, tmp_path / "store" / digest)
    (tmp_path / "store" / ("0" * 64)).mkdir()
    (tmp_path / "store" / ("0" * 64) / "engine.json").write_text('{"schema": 4, "file": {"name": "../../fleet.toml"}}')
    offer = Offer(fleet, TINY, engines=tmp_path / "store")
    for path in TINY.iterdir():
        file = offer.find(Ask("bundle", path.name))
        assert file is not None
        chunks = list(file.chunks())
        assert b"".join(chunks) == path.read_bytes()
        assert max(map(len, chunks)) <= CHUNK_BYTES
    for what in ("record", "engine"):
        file = offer.find(Ask("record" if what == "record" else "engine", digest))
        assert file is not None
        assert b"".join(file.chunks()) == (store / digest / file.path.name).read_bytes()
    for ask in (
        Ask("bundle", "../fleet.toml"),
        Ask("bundle", "manifest.json.sig"),  # it is not signed
        Ask("bundle", ""),
        Ask("engine", "0" * 64),
        Ask("engine", "1" * 64),
        Ask("record", ".." + "/" * 62),
        Ask("record", digest.upper()),
    ):
        assert offer.find(ask) is None
    assert Offer(fleet, TINY).find(Ask("engine", digest)) is None
