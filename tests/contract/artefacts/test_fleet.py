"""Fleet files: every contradiction is refused in one line that names the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from devit_contract.artefacts.fleet import ClientEntry, Extra, Serving, is_loopback, load_fleet, parse_endpoint
from devit_contract.errors import DevitError, InputError, ManifestError

# Of secrets that never change, so that every run names its tests alike.
KEYS = {
    name: zmq.curve_public(z85.encode(bytes([number] * 32))).decode()
    for number, name in enumerate(("node", "jetson1", "jetson2", "desk"))
}
PLAIN = """
schema = 2
[node]
endpoint = "tcp://127.0.0.1:7711"
client_endpoint = "tcp://[::1]:7712"
[[device]]
name = "jetson1"
submodel = 0
[[device]]
name = "jetson2"
submodel = 1
"""
KEYED = f"""
schema = 2
[node]
endpoint = "tcp://10.0.0.2:7711"
client_endpoint = "tcp://*:7712"
public_key = "{KEYS["node"]}"
[serving]
deadline_ms = 20
min_devices = 2
[[device]]
name = "jetson1"
submodel = 0
public_key = "{KEYS["jetson1"]}"
host = "jetson1.local"
[[device]]
name = "jetson2"
submodel = 1
public_key = "{KEYS["jetson2"]}"
[[client]]
name = "desk"
public_key = "{KEYS["desk"]}"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text)
    return path


def test_a_fleet_on_loopback_needs_no_keys_and_has_defaults(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, PLAIN))
    assert not fleet.has_keys
    assert fleet.serving == Serving(deadline_ms=50.0, min_devices=1, credit=2, queue=64)
    assert fleet.find_device("jetson2").submodel == 1
    with pytest.raises(InputError, match="device 'jetson3': expected one of jetson1, jetson2"):
        fleet.find_device("jetson3")


def test_a_fleet_with_keys_is_read_whole(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, KEYED))
    assert fleet.has_keys
    assert fleet.serving == Serving(deadline_ms=20.0, min_devices=2)
    assert (fleet.device[0].host, fleet.client[0].name) == ("jetson1.local", "desk")


@pytest.mark.parametrize(
    ("base", "old", "new", "said"),
    [
        (PLAIN, '"jetson2"', '"jetson1"', "name 'jetson1' is there twice"),
        (KEYED, '"desk"', '"jetson1"', "name 'jetson1' is there twice"),
        (KEYED, KEYS["jetson2"], KEYS["jetson1"], "public_key"),
        (KEYED, KEYS["desk"], KEYS["jetson1"], "public_key"),
        (PLAIN, '"jetson1"', '"Jetson 1"', "name: expected at most 63 small letters"),
        (PLAIN, "127.0.0.1", "10.0.0.2", "others can reach this address, so it needs keys"),
        (PLAIN, "127.0.0.1", "*", "others can reach this address, so it needs keys"),
        (PLAIN, "127.0.0.1", "fusion.local", "others can reach this address, so it needs keys"),
        (PLAIN, "[::1]", "[::]", "others can reach this address, so it needs keys"),
        (
            PLAIN,
            "submodel = 1",
            f'submodel = 1\npublic_key = "{KEYS["jetson2"]}"',
            "public_key of node: missing",
        ),
        (KEYED, f'public_key = "{KEYS["desk"]}"', 'public_key = ""', "public_key of desk: expected a key"),
        (KEYED, KEYS["jetson1"], "hunter2", "public_key of jetson1: expected a key of 40 Z85 characters"),
        (KEYED, KEYS["node"], "hunter2", "public_key of node: expected a key of 40 Z85 characters"),
        (PLAIN, "tcp://127.0.0.1:7711", "127.0.0.1:7711", "expected an endpoint like tcp://10.0.0.2:7711"),
        (PLAIN, "tcp://127.0.0.1:7711", "ipc:///tmp/x", "expected an endpoint like"),
        (PLAIN, ":7711", ":65536", "expected an endpoint like"),
        (PLAIN, ":7711", "", "expected an endpoint like"),
        (KEYED, "deadline_ms = 20", "deadline_ms = 0", "serving.deadline_ms: expected 1 to 60000, found 0"),
        (KEYED, "deadline_ms = 20", "deadline_ms = nan", "serving.deadline_ms: expected 1 to 60000, found nan"),
        (KEYED, "deadline_ms = 20", 'deadline_ms = "20"', "field serving.deadline_ms: Expected `float`, got `str`"),
        (KEYED, "min_devices = 2", "min_devices = 3", "serving.min_devices: expected 1 to 2, found 3"),
        (KEYED, "min_devices = 2", "min_devices = 0", "serving.min_devices: expected 1 to 2, found 0"),
        (KEYED, "min_devices = 2", "credit = 17", "serving.credit: expected 1 to 16, found 17"),
        (KEYED, "min_devices = 2", "policy = 'some'", "field serving.policy: expected all, certain, replica or single"),
        (KEYED, "[serving]", "[certain]\nflips = 0.2\n[serving]", "certain.flips: expected 0.0001 to 0.1, found 0.2"),
        (KEYED, "[serving]", "[certain]\nstages = []\n[serving]", "certain.stages: expected 1 to 64, found 0"),
        (KEYED, "[serving]", "[certain]\nstages = [1, 0]\n[serving]", "certain.stages: expected 1 to 64, found 0"),
        (KEYED, "[serving]", "[certain]\naudit = 1.5\n[serving]", "certain.audit: expected 0 to 1, found 1.5"),
        (KEYED, "[serving]", "[watch]\nliars = 'kill'\n[serving]", "field watch.liars: expected exclude, off or warn"),
        (KEYED, "min_devices = 2", "queue = -1", "serving.queue: expected 0 to 4096, found -1"),
        (
            KEYED,
            "min_devices = 2",
            "startup_grace_ms = nan",
            "serving.startup_grace_ms: expected 0 to 60000, found nan",
        ),
        (KEYED, "min_devices = 2", "kmin = 2", "unknown field `kmin`"),
        (PLAIN, "schema = 2", "schema = 3", "field schema: expected 2, found 3"),
        (PLAIN, "[node]", "[[node]]", "[[node]] is the form of schema 1: write [node] instead, and schema = 2"),
        ("schema = 1\nnode = []\ndevice = []", "", "", "[[node]] is the form of schema 1"),
        (
            KEYED,
            "min_devices = 2",
            'feature_dtype = "half"',
            "field serving.feature_dtype: expected float16 or float32, found",
        ),
        (PLAIN, "submodel = 1", "", "missing required field `submodel`"),
        ("device = []" + PLAIN.partition("[[device]]")[0], "", "", "has no [[device]]: see examples/fleet.toml"),
    ],
)
def test_a_fleet_that_contradicts_itself_is_refused_in_one_line(
    tmp_path: Path, base: str, old: str, new: str, said: str
) -> None:
    path = write(tmp_path, base.replace(old, new, 1) if old else base)
    with pytest.raises(DevitError, match=re.escape(said)) as error:
        load_fleet(path)
    assert isinstance(error.value, (InputError, ManifestError))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "loopback"),
    [
        ("tcp://[fe80::1%eth0]:7711", "fe80::1%eth0", 7711, False),
        ("tcp://fusion_node:7711", "fusion_node", 7711, False),
        ("tcp://127.0.0.1:0", "127.0.0.1", 0, True),
        ("tcp://127.8.9.1:1", "127.8.9.1", 1, True),
        ("tcp://localhost:7711", "localhost", 7711, True),
        ("tcp://[::1]:7711", "::1", 7711, True),
        ("tcp://[fe80::1]:65535", "fe80::1", 65535, False),
        ("tcp://0.0.0.0:7711", "0.0.0.0", 7711, False),
        ("tcp://*:7711", "*", 7711, False),
        ("tcp://localhost.evil.example:7711", "localhost.evil.example", 7711, False),
    ],
)
def test_only_loopback_counts_as_loopback(endpoint: str, host: str, port: int, loopback: bool) -> None:
    assert parse_endpoint(endpoint, "here") == (host, port)
    assert is_loopback(endpoint) is loopback


def test_extra_of_the_example_is_read_once_its_comment_signs_are_gone(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "examples" / "fleet.toml").read_text()
    text = re.sub(r"(?m)^# (?=\[\[extra|name|watts|source)", "", text)
    keys = (zmq.curve_keypair()[0].decode() for _ in iter(int, 1))
    path = tmp_path / "fleet.toml"
    path.write_text(re.sub(r"paste-the-public-key[^\"]*", lambda _: next(keys), text))
    assert load_fleet(path).extra == (Extra("switch", 4.5, "wall meter, 2026-01-05, five ports busy"),)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ('name = "switch"\nwatts = 0.0\nsource = "meter"', "watts of .* expected more than 0, found 0"),
        ('name = "switch"\nwatts = nan\nsource = "meter"', "watts of .* expected more than 0, found nan"),
        ('name = "switch"\nwatts = 4.5\nsource = " "', "say where its watts come from"),
        ('name = "switch"\nwatts = 4.5', "source"),
    ],
)
def test_extra_without_watts_or_their_source_is_refused(tmp_path: Path, entry: str, text: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(f"{PLAIN}\n[[extra]]\n{entry}\n")
    with pytest.raises(ManifestError, match=text):
        load_fleet(path)


@pytest.mark.parametrize(
    ("serving", "pixels"),
    [
        (Serving(), 1_000_000),
        (Serving(deadline_ms=5), 250_000),
        (Serving(deadline_ms=60_000), 16_000_000),
        (Serving(max_pixels=3), 3),
    ],
)
def test_picture_files_are_as_large_as_devices_decode_in_time_or_as_the_operator_says(
    serving: Serving, pixels: int
) -> None:
    assert serving.most_pixels == pixels


def test_a_client_has_its_limits_and_by_default_none(tmp_path: Path) -> None:
    limited = load_fleet(write(tmp_path, f"{KEYED}max_in_flight = 8\nweight = 100\n"))
    assert limited.shares == (ClientEntry("desk", KEYS["desk"], max_in_flight=8, weight=100),)
    assert load_fleet(write(tmp_path, KEYED)).shares == (ClientEntry("desk", KEYS["desk"], 0, 1),)


def test_clients_without_keys_share_one_entry(tmp_path: Path) -> None:
    assert load_fleet(write(tmp_path, PLAIN)).shares == (ClientEntry(""),)
    one = f'{PLAIN}[[client]]\nname = "all"\nmax_in_flight = 8\n'
    assert load_fleet(write(tmp_path, one)).shares == (ClientEntry("", max_in_flight=8),)
    with pytest.raises(ManifestError, match=r"expected one client, found 2: without keys all clients are one"):
        load_fleet(write(tmp_path, f'{one}[[client]]\nname = "other"\n'))


@pytest.mark.parametrize("line", ["weight = 0", "weight = 101", "max_in_flight = -1", "max_in_flight = 65536"])
def test_limits_of_a_client_have_bounds(tmp_path: Path, line: str) -> None:
    field, _, found = line.partition(" = ")
    with pytest.raises(ManifestError, match=rf"field {field} of client desk: expected .*, found {found}"):
        load_fleet(write(tmp_path, f"{KEYED}{line}\n"))
