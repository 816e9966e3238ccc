"""A fresh device joins a real host of pairing: what it then has, what it refuses, and who can listen or interfere."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.edge_agent.join.between import Between, Sender, between, unchanged
from tests.fusion.pairing.hosted import CODE, WRONG, Hosted, hosted, write_fleet
from tests.support.cell import TINY

from devit_contract.artefacts.fleet import Device, load_fleet
from devit_contract.artefacts.keys import load_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.signing import MEMORY_NAME, accept_serial, sign_manifest
from devit_contract.errors import EngineError, InputError, LostLinkError, ManifestError, PeerProtocolError, RefusedError
from devit_contract.service.progress import no_progress
from devit_contract.wire.pairing import Added, Channel, Handshake, Kind, NodeAddress, Welcome, encode
from devit_edge_agent.config import load_agent_config
from devit_edge_agent.engine.loading import load, read_settings
from devit_edge_agent.join.equal_board import take_engine, target_of
from devit_edge_agent.join.join import Joiner, JoinReport
from devit_edge_agent.join.place import Place
from devit_engines.accuracy import verdict_digest
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_fusion.pairing.offer import Offer

SHIPPED = Path(__file__).parents[3] / "pipeline/devit_pipeline/fashion_mnist/bundle"


class Setting:
    """A node's files, and where the device's will be."""

    def __init__(self, folder: Path) -> None:
        self.fleet = write_fleet(folder)
        self.bundle = folder / "node-bundle"
        shutil.copytree(TINY, self.bundle)
        self.device = folder / "jetson2"
        self.place = Place.of_folder(self.device, folder / "store")
        self.told: list[str] = []

    def join(self, port: int, code: str = CODE, **more: object) -> JoinReport:
        joiner = Joiner(f"127.0.0.1:{port}", code, "jetson2", self.place)
        return replace(joiner, **more).run(no_progress, self.told.append)  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        return [device.name for device in load_fleet(self.fleet).device]

    def check_nothing_came(self) -> None:
        """Of the device there is its key, which it may use again, and the fleet is as it was."""
        assert self.names == ["jetson1"]
        left = {path.name for path in self.device.rglob("*") if path.is_file()}
        assert left - {"allowed_signers"} <= {"jetson2.key", "jetson2.key_secret"}


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


@contextmanager
def heard_by(running: Hosted) -> Iterator[Between]:
    with between(running.port) as heard:
        yield heard


def test_a_fresh_device_has_all_it_needs_and_the_fleet_has_the_device(setting: Setting) -> None:
    with hosted(Offer(setting.fleet, setting.bundle)) as running:
        report = setting.join(running.port)
        running.wait()
    assert (report.name, report.submodel, report.engine_origin) == ("jetson2", 1, "built")
    config = load_agent_config(Path(report.config))
    fleet = load_fleet(setting.fleet)
    keys = load_keys(Path(config.secret_key))
    assert fleet.find_device("jetson2").public_key.encode() == keys.public
    assert (config.name, config.submodel, config.node) == ("jetson2", 1, fleet.node.endpoint)
    assert (config.node_public_key, config.allowed_signers) == (fleet.node.public_key, "")
    assert stat.S_IMODE(Path(config.secret_key).stat().st_mode) == 0o600
    assert stat.S_IMODE((setting.device / "keys").stat().st_mode) == 0o700
    part = Bundle(Path(config.bundle))
    part.verify()
    assert {file.device for file in part.files} == {None, 1}
    assert {file.role for file in part.files} == {"submodel", "fusion", "golden"}
    assert Store(setting.place.store).read(report.engine_digest)
    with pytest.raises(InputError, match="this device has joined already"):
        setting.join(running.port)


def test_the_engine_of_an_equal_board_is_taken_and_checked_here(setting: Setting, store: Path) -> None:
    with hosted(Offer(setting.fleet, setting.bundle, engines=store)) as running:
        report = setting.join(running.port)
    assert report.engine_origin == "fetched"
    theirs, _ = Store(store).read(report.engine_digest)
    ours, _ = Store(setting.place.store).read(report.engine_digest)
    assert (ours.file, ours.created) == (theirs.file, theirs.created)  # it was not built again
    assert ours.latency != theirs.latency  # but measured here
    assert not target_of(Bundle(setting.place.bundle), Store(setting.place.store), 1).objection(ours)


def test_an_engine_that_is_another_one_is_refused_and_built_anew(setting: Setting, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "forged")
    target = target_of(Bundle(TINY), Store(tmp_path / "forged"), 1)
    for key in target.engine_keys():
        if target.store.record(key.digest) is None:
            continue
        record, content = target.store.read(key.digest)
        target.store.keep(msgspec.structs.replace(record, key=key, file=record.file), content)
        (tmp_path / "forged" / key.digest / record.file.name).write_bytes(content[:-1] + b"\0")
    with hosted(Offer(setting.fleet, setting.bundle, engines=tmp_path / "forged")) as running:
        report = setting.join(running.port)
    assert report.engine_origin == "built"
    assert any(line.startswith("the node's engine is refused, so one is built here: ") for line in setting.told)


def test_an_engine_that_does_not_compute_what_was_trained_is_refused(tmp_path: Path) -> None:
    """As of a back end whose engines have no digest in the manifest: the other submodel's graph in this one's place."""
    bundle = Bundle(SHIPPED)
    (built,) = build_engines(bundle, Store(tmp_path / "theirs"), submodels=[1])
    here = target_of(bundle, Store(tmp_path / "ours"), 1)
    target = replace(here, backend=replace(here.backend, is_onnx=False))
    key, content = built.record.key, bundle.read("submodel", device=0, variant=built.record.key.variant)
    file = msgspec.structs.replace(built.record.file, sha256=hashlib.sha256(content).hexdigest())
    forged = msgspec.structs.replace(built.record, file=file, validated_against=(verdict_digest(bundle, file.sha256),))
    with pytest.raises(EngineError, match="submodel 1: expected what was trained, found"):
        take_engine(target, key, msgspec.json.encode(forged), content, no_progress)
    assert target.store.entries() == []


@pytest.mark.parametrize("fault", ["changed file", "missing file", "unlisted submodel", "no manifest"])
def test_a_bundle_that_is_not_what_its_manifest_says_leaves_nothing(setting: Setting, fault: str) -> None:
    offer = Offer(setting.fleet, setting.bundle)
    path = setting.bundle / "submodel-1.fp32.onnx"
    if fault == "changed file":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif fault == "missing file":
        path.unlink()
    elif fault == "no manifest":
        (setting.bundle / "manifest.json").unlink()
    else:
        offer = Offer(setting.fleet, setting.bundle, submodel=1)
        manifest = msgspec.json.decode((setting.bundle / "manifest.json").read_bytes())
        manifest["submodels"] = manifest["submodels"][:1]
        (setting.bundle / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with hosted(offer) as running, pytest.raises((InputError, ManifestError)):
        setting.join(running.port)
    setting.check_nothing_came()


class Signer:
    """Who signs the node's bundle."""

    def __init__(self, setting: Setting, name: str) -> None:
        self.key = setting.fleet.parent / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True, timeout=60)
        self.signers = self.key.with_suffix(".signers")
        kind, public = self.key.with_suffix(".pub").read_text().split()[:2]
        self.signers.write_text(f'{name} namespaces="devit-bundle" {kind} {public}\n')


def test_the_nodes_signers_become_the_devices_and_its_agent_keeps_to_them(setting: Setting) -> None:
    desk = Signer(setting, "desk")
    sign_manifest(setting.bundle, desk.key, "desk")
    with hosted(Offer(setting.fleet, setting.bundle, allowed_signers=desk.signers)) as running:
        report = setting.join(running.port)
    config = load_agent_config(Path(report.config))
    assert report.signer == "desk"
    assert Path(config.allowed_signers).read_bytes() == desk.signers.read_bytes()
    loaded = load(read_settings(Path(report.config), "built"))
    with loaded.engine:
        assert loaded.hello.submodel == 1
    with pytest.raises(InputError, match=r"expected serial .* or later"):
        accept_serial(Path(config.store) / MEMORY_NAME, loaded.bundle.manifest.name, -1)


@pytest.mark.parametrize("fault", ["unsigned", "another signer", "changed since"])
def test_a_bundle_that_its_signers_have_not_signed_leaves_nothing(setting: Setting, fault: str) -> None:
    desk, other = Signer(setting, "desk"), Signer(setting, "other")
    if fault != "unsigned":
        sign_manifest(setting.bundle, desk.key, "desk")
    if fault == "changed since":
        path = setting.bundle / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"name": "tiny"', b'"name": "tinY"'))
    own = other.signers if fault == "another signer" else desk.signers
    with hosted(Offer(setting.fleet, setting.bundle)) as running, pytest.raises(ManifestError):
        setting.join(running.port, allowed_signers=own)
    setting.check_nothing_came()


def test_a_signature_is_checked_where_no_signers_are_known_too(setting: Setting) -> None:
    sign_manifest(setting.bundle, Signer(setting, "desk").key, "desk")
    signed = (setting.bundle / "manifest.json").read_bytes()
    (setting.bundle / "manifest.json").write_bytes(signed + b" ")
    with hosted(Offer(setting.fleet, setting.bundle)) as running:
        with pytest.raises(ManifestError, match="expected a signature of this manifest, found"):
            setting.join(running.port)
        setting.check_nothing_came()
        (setting.bundle / "manifest.json").write_bytes(signed)
        assert setting.join(running.port).signer.startswith("SHA256:")


def test_a_device_that_the_node_cannot_add_has_not_joined(setting: Setting) -> None:
    class Locked(Offer):
        def enrol(self, device: Device) -> None:
            raise InputError(f"fleet.toml: cannot be written for {device.name}")

    refused = pytest.raises(RefusedError, match=r"declined: fleet.toml: cannot be written for jetson2")
    with hosted(Locked(setting.fleet, setting.bundle)) as running, refused:
        setting.join(running.port)
    assert not setting.place.config.exists()
    with hosted(Offer(setting.fleet, setting.bundle)) as running:
        setting.join(running.port)  # with what it has already
    assert setting.place.config.exists()


def test_a_wrong_code_is_refused_and_leaves_nothing(setting: Setting) -> None:
    with hosted(Offer(setting.fleet, setting.bundle)) as running:
        for _ in range(3):
            with pytest.raises(RefusedError, match="the code is wrong: compare it with what devit pair shows there"):
                setting.join(running.port, WRONG)
        with pytest.raises(RefusedError, match=r"too many wrong codes came: try again in (30|29) s"):
            setting.join(running.port)
    setting.check_nothing_came()


def test_nobody_there_is_told_in_a_line(setting: Setting) -> None:
    with pytest.raises(LostLinkError, match=r"127.0.0.1:1: no link \(Connection refused\): run devit join again while"):
        setting.join(1)


def test_an_eavesdropper_hears_no_secret_no_name_no_key_and_no_file(setting: Setting, store: Path) -> None:
    with hosted(Offer(setting.fleet, setting.bundle, engines=store)) as running, heard_by(running) as heard:
        setting.join(heard.port)
    files = [path.read_bytes() for path in (*setting.bundle.iterdir(), *setting.device.rglob("*")) if path.is_file()]
    assert len(heard.heard) > sum(path.stat().st_size for path in setting.place.bundle.iterdir())
    for secret in (CODE, CODE.replace("-", ""), "jetson2", "manifest.json", "127.0.0.1"):
        assert secret.encode() not in heard.heard
    for content in files:
        for start in range(0, len(content), 4096):  # any piece of any file, keys and fleet's public keys among them
            piece = content[start : start + 24]
            assert len(piece) < 12 or piece not in heard.heard
    for device in load_fleet(setting.fleet).device:
        assert device.public_key.encode() not in heard.heard


Interference = Callable[[Sender, Kind, int, bytes], bytes]


def flip(sender: Sender, number: int) -> Interference:
    """Change one bit of one frame."""

    def change(who: Sender, kind: Kind, count: int, body: bytes) -> bytes:
        is_it = (who, count) == (sender, number)
        return unchanged(who, kind, count, body[:-1] + bytes([body[-1] ^ 1]) if is_it else body)

    return change


def repeat(who: Sender, kind: Kind, number: int, body: bytes) -> bytes:
    """Send the node's second answer twice."""
    return unchanged(who, kind, number, body) * (2 if (who, number) == ("node", 2) else 1)


def drop(who: Sender, kind: Kind, number: int, body: bytes) -> bytes:
    """Swallow what tells the size of a file."""
    return b"" if (who, number) == ("node", 5) else unchanged(who, kind, number, body)


@pytest.mark.parametrize(
    "change",
    [
        flip("joiner", 0),
        flip("node", 0),
        flip("joiner", 1),
        flip("node", 1),
        flip("joiner", 2),
        flip("node", 4),
        repeat,
        drop,
    ],
    ids=["joiner's hello", "node's hello", "introduction", "welcome", "question", "file", "repeated", "dropped"],
)
def test_who_changes_anything_on_the_way_is_noticed_and_nothing_is_kept(setting: Setting, change: Interference) -> None:
    refused = pytest.raises((RefusedError, PeerProtocolError, LostLinkError))
    with hosted(Offer(setting.fleet, setting.bundle)) as running, between(running.port, change) as middle, refused:
        setting.join(middle.port)
    setting.check_nothing_came()


def test_a_man_in_the_middle_who_guesses_a_code_has_one_guess_and_is_noticed_by_both(setting: Setting) -> None:
    """He shakes hands with each side under a code of his own, and answers the joiner in the node's place."""
    to_joiner, to_node = Handshake(WRONG, "node"), Handshake(WRONG, "joiner")
    channels: dict[Sender, Channel] = {}

    def swap(who: Sender, kind: Kind, number: int, body: bytes) -> bytes:
        if kind is Kind.HELLO:
            ours = to_joiner if who == "joiner" else to_node
            channels[who] = ours.finish(body)
            return (to_node if who == "joiner" else to_joiner).hello
        if who == "joiner":
            return unchanged(who, kind, number, body)
        welcome = Welcome(0, (NodeAddress("tcp://10.6.6.6:7711", "m" * 40),))
        return channels["joiner"].seal(encode(welcome)) + channels["joiner"].seal(encode(Added()))

    noticed = pytest.raises(RefusedError, match="does not know the code, or somebody between changes what is said")
    with hosted(Offer(setting.fleet, setting.bundle)) as running, between(running.port, swap) as middle, noticed:
        setting.join(middle.port)
    assert [line.partition("refused: ")[2] for line in running.log.lines] == ["wrong code, number 1"]
    setting.check_nothing_came()


def test_a_device_that_has_lost_its_files_joins_again_by_its_key(setting: Setting) -> None:
    with hosted(Offer(setting.fleet, setting.bundle)) as running:
        setting.join(running.port)
    setting.place.config.unlink()
    shutil.rmtree(setting.place.bundle)
    with hosted(Offer(setting.fleet, setting.bundle)) as running:
        report = setting.join(running.port)
    assert (report.submodel, report.engine_origin) == (1, "stored")
    assert setting.names == ["jetson1", "jetson2"]
