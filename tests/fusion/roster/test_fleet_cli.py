"""``devit fleet`` as a user types it: the file changes, and the node says whether it has the change."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import Result
from tests.fusion.hand_made_devices import Scene
from typer.testing import CliRunner

from devit_contract.artefacts.fleet import Device, load_fleet
from devit_contract.artefacts.keys import new_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError
from devit_fusion.roster import asked
from devit_fusion.roster.fleet_cli import app
from devit_fusion.roster.watched import WatchedFleet

PLAIN = """
schema = 2
[node]
endpoint = "tcp://127.0.0.1:0"
client_endpoint = "tcp://127.0.0.1:0"
[[device]]
name = "jetson0"
submodel = 0
"""


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asked, "_PATIENCE_S", 1.0)
    (tmp_path / "fleet.toml").write_text(PLAIN)
    return tmp_path / "fleet.toml"


def fleet(arguments: str) -> Result:
    return CliRunner().invoke(app, arguments.split())


def test_members_with_keys_are_added_replaced_removed_and_listed(path: Path) -> None:
    keys = {name: new_keys(Path("keys"), name).public.decode() for name in ("node", "jetson0", "spare", "desk")}
    text = PLAIN.replace("[[device]]", f'public_key = "{keys["node"]}"\n[[device]]')
    path.write_text(text + f'public_key = "{keys["jetson0"]}"\n')
    done = fleet(f"add spare --submodel 0 --public-key {keys['spare']} --host s.local")
    assert done.stdout == "spare: added in fleet.toml\n"
    assert done.stderr == "a running node takes it within a second: ask with --key, or see devit status\n"
    added = fleet(f"add desk --client --public-key {keys['desk']} --json")
    assert json.loads(added.stdout) == {
        "fleet": "fleet.toml",
        "done": "desk: added",
        "node": "not asked",
        "needs_restart": [],
    }
    assert fleet("replace jetson0 --name orin --host o.local").exit_code == 0
    rows = json.loads(fleet("list --json").stdout)
    assert [(row["name"], row["kind"], row["rank"]) for row in rows] == [
        ("orin", "device", 1),
        ("spare", "device", 2),
        ("desk", "client", None),
    ]
    assert fleet("remove desk").exit_code == 0
    found = load_fleet(path)
    assert found.client == ()
    assert found.device == (
        Device("orin", 0, keys["jetson0"], "o.local"),
        Device("spare", 0, keys["spare"], "s.local"),
    )
    lines = fleet("list").stdout.splitlines()
    assert [line.split()[:4] for line in lines if "s.local" in line] == [["spare", "device", "0", "spare"]]


def test_the_node_says_that_it_has_a_change_or_why_it_has_not(bundle: Bundle, path: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        watched = WatchedFleet(path)
        scene = Scene(stack, bundle, watched.fleet, None, watched=watched)
        port = re.sub(r".*:", ":", scene.node.client_endpoint)
        # The port that the node has found is no change to it.
        path.write_text(PLAIN.replace(':0"\n[[', f'{port}"\n[serving]\nqueue = 7\n[['))
        done = fleet("add jetson1 --submodel 1 --json")
        found = json.loads(done.stdout)
        assert (found["node"], found["needs_restart"]) == ("taken", ["[serving]"])
        assert "restart fusion-node to apply [serving], changed before" in done.stderr
        assert len(scene.client().status().devices) == 2
        done = fleet("add jetson7 --submodel 7")
        assert (done.exit_code, done.stdout) == (1, "jetson7: added in fleet.toml\n")
        assert str(done.exception).startswith("the node keeps its fleet as it was")
        assert "expected a submodel from 0 to 1" in str(done.exception)
        assert fleet("remove jetson7").exit_code == 0
        copy = tmp_path / "copy.toml"
        copy.write_text(path.read_text())
        done = fleet("remove jetson1 --fleet copy.toml")
        assert done.stderr.endswith("that node has another fleet.toml: copy this one to it\n")
    done = fleet("remove jetson1")
    assert done.stderr.startswith("a node takes it when it starts: none has answered here (tcp://127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("add x", "give a device's --submodel, or --client"),
        ("add x --client --host y", "give a device's --submodel, or --client"),
        ("add jetson0 --submodel 0", "name 'jetson0' is there twice"),
        ("remove jetson0", "jetson0 is its last device"),
        ("remove x", "x: expected a device or client of the fleet, one of jetson0"),
        ("replace jetson0", "nothing to replace"),
        ("list --fleet absent.toml", "absent.toml: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_one_line(arguments: str, said: str, path: Path) -> None:
    done = fleet(arguments)
    assert isinstance(done.exception, DevitError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert path.read_text() == PLAIN
