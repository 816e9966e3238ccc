"""Edits of the fleet file: any sequence of them leaves a fleet that loads, and every comment."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from devit_contract.artefacts.fleet import ClientEntry, Device, load_fleet
from devit_contract.errors import DevitError, InputError, ManifestError
from devit_fusion.roster.fleet_file import (
    Kind,
    add_device,
    add_member,
    remove_device,
    remove_member,
    replace_device,
    replace_member,
)

NAMES = ("north", "south", "east", "west")


def key(number: int) -> str:
    return z85.encode(bytes([number + 1]) * 32).decode()


TEXT = f"""# our cell
schema = 2

[node]  # upstairs
endpoint = "tcp://10.0.0.2:7711"    # two spaces
client_endpoint = "tcp://10.0.0.2:7712"
public_key = "{key(99)}"

# the devices
[[device]]
name = "north" # by the door
submodel = 0
public_key = "{key(0)}"

# the second one
[[device]] # new in May
submodel = 1
name = 'south'
public_key = "{key(1)}"
host = "south.local"

# who may ask
[[client]]
name = "desk"
public_key = "{key(50)}"

# [[extra]]
# name = "switch"
"""
ABOUT_THEM = {"# by the door", "# new in May"}
"""Comments within a device's own lines, which go with them."""


def comments(text: str) -> list[str]:
    found = [f"#{rest}" for _, mark, rest in (line.partition("#") for line in text.splitlines()) if mark]
    return [comment for comment in found if comment not in ABOUT_THEM and '"' not in comment] + [
        line for line in text.splitlines() if line.startswith("# ") and '"' in line
    ]


devices = st.builds(
    Device,
    name=st.sampled_from(NAMES),
    submodel=st.integers(0, 2),
    public_key=st.integers(0, 4).map(key),
    host=st.sampled_from(["", "a.local", 'b "quoted"\\', "c # no comment"]),
)
clients = st.builds(ClientEntry, name=st.sampled_from(["desk", "lab"]), public_key=st.integers(50, 52).map(key))
edits = st.one_of(
    st.tuples(st.just("device"), st.sampled_from(["add", "remove", "replace"]), st.sampled_from(NAMES), devices),
    st.tuples(
        st.just("client"), st.sampled_from(["add", "remove", "replace"]), st.sampled_from(["desk", "lab"]), clients
    ),
)


def expected(
    fleet: dict[str, list[Device | ClientEntry]], kind: str, what: str, name: str, member: Device | ClientEntry
) -> dict[str, list[Device | ClientEntry]] | None:
    """Say in few words what a fleet is after an edit; ``None`` where it must be refused."""
    members = list(fleet[kind])
    places = [place for place, each in enumerate(members) if each.name == name]
    if what == "add":
        members.append(member)
    elif not places:
        return None
    else:
        members[places[0] : places[0] + 1] = [member] if what == "replace" else []
    after = {**fleet, kind: members}
    everyone = after["device"] + after["client"]
    is_unique = all(
        len({getattr(each, field) for each in everyone}) == len(everyone) for field in ("name", "public_key")
    )
    return after if is_unique and after["device"] else None


@given(st.lists(edits, max_size=12), st.sampled_from([TEXT, TEXT.replace("\n", "\r\n"), TEXT.rstrip("\n")]))
def test_any_edits_leave_the_fleet_that_was_meant_and_every_comment(
    steps: list[tuple[Kind, str, str, Device | ClientEntry]], text: str
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.toml"
        path.write_bytes(text.encode())
        first = load_fleet(path)
        fleet: dict[str, list[Device | ClientEntry]] = {"device": list(first.device), "client": list(first.client)}
        for kind, what, name, member in steps:
            before, after = path.read_bytes(), expected(fleet, kind, what, name, member)
            with nullcontext() if after is not None else pytest.raises(DevitError, match=r"^[^\n]+$"):
                if what == "add":
                    add_member(path, kind, member)
                elif what == "remove":
                    remove_member(path, kind, name)
                else:
                    replace_member(path, kind, name, member)
            if after is None:
                assert path.read_bytes() == before
                continue
            fleet = after
            found = load_fleet(path)
            assert (list(found.device), list(found.client)) == (fleet["device"], fleet["client"])
            assert (found.node, found.serving) == (first.node, first.serving)
            assert comments(path.read_text()) == comments(text)
            assert list(Path(folder).iterdir()) == [path]


def test_a_new_device_stands_behind_the_others_and_above_the_comment_on_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(TEXT)
    add_device(path, Device("east", 1, key(3)))
    added = f'[[device]]\nname = "east"\nsubmodel = 1\npublic_key = "{key(3)}"\n\n'
    assert path.read_text() == TEXT.replace("# who may ask", added + "# who may ask")
    remove_device(path, "east")
    assert path.read_text() == TEXT


def test_a_changed_field_keeps_the_comment_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(TEXT)
    replace_device(path, "north", Device("attic", 0, key(0), "attic.local"))
    north = f'name = "north" # by the door\nsubmodel = 0\npublic_key = "{key(0)}"\n'
    attic = north.replace("north", "attic") + 'host = "attic.local"\n'
    assert path.read_text() == TEXT.replace(north, attic)


def test_an_edit_keeps_the_permissions_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    remove_device(path, "south")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_edits_at_the_same_time_all_take_place(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(TEXT)
    names = [f"device{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add_device(path, Device(names[number], 1, key(number + 10))), range(8)))
    assert {device.name for device in load_fleet(path).device} == {"north", "south", *names}


def test_what_cannot_be_edited_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(TEXT)
    with pytest.raises(InputError, match=r"device 'attic': expected one of north, south$"):
        remove_device(path, "attic")
    with pytest.raises(ManifestError, match="name 'south' is there twice"):
        add_device(path, Device("south", 0, key(5)))
    with pytest.raises(InputError, match="public_key of east: expected a key of 40 Z85 characters"):
        add_device(path, Device("east", 0))
    remove_device(path, "south")
    with pytest.raises(InputError, match="north is its last device"):
        remove_device(path, "north")
    path.write_text(
        f"device = [{{name = 'a', submodel = 0, public_key = '{key(0)}'}}]\n" + TEXT[: TEXT.find("# the de")]
    )
    with pytest.raises(ManifestError, match=r"expected \[\[device\]\] one after the other"):
        add_device(path, Device("east", 0, key(5)))
