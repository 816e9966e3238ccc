"""Agent files: every contradiction is refused in one line that names the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from devit_contract.errors import DevitError, InputError
from devit_edge_agent.config import load_agent_config

# Of secrets that never change, so that every run names its tests alike.
KEYS = {
    name: zmq.curve_public(z85.encode(bytes([number] * 32))).decode() for number, name in enumerate(("node", "jetson1"))
}
AGENT = f"""
schema = 1
name = "jetson1"
submodel = 0
node = "tcp://10.0.0.2:7711"
bundle = "bundle"
node_public_key = "{KEYS["node"]}"
secret_key = "keys/jetson1.key_secret"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text)
    return path


def test_an_agent_s_paths_are_relative_to_its_file(tmp_path: Path) -> None:
    text = AGENT + 'store = "/var/lib/devit/engines"\nroot = "~/board"\n'
    config = load_agent_config(write(tmp_path, text))
    assert config.bundle == str(tmp_path / "bundle")
    assert config.secret_key == str(tmp_path / "keys" / "jetson1.key_secret")
    assert config.store == "/var/lib/devit/engines"
    assert config.root == str(Path.home() / "board")
    assert load_agent_config(write(tmp_path, AGENT)).store == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"jetson1"', '"../jetson1"', "name: expected at most 63 small letters"),
        ("tcp://", "http://", "expected an endpoint like"),
        (f'node_public_key = "{KEYS["node"]}"', "", "node_public_key and secret_key must be given together"),
        ('secret_key = "keys/jetson1.key_secret"', "", "node_public_key and secret_key must be given together"),
        (KEYS["node"], "hunter2", "node_public_key: expected a key of 40 Z85 characters"),
        ('bundle = "bundle"', 'bundle = "bundle"\nthreads = 0', "threads: expected 1 to 256, found 0"),
        (
            'bundle = "bundle"',
            'bundle = "bundle"\nthreads = 3000000000',
            "threads: expected 1 to 256, found 3000000000",
        ),
        ('bundle = "bundle"', "", "missing required field `bundle`"),
        *[
            (
                'bundle = "bundle"',
                f'bundle = "bundle"\n{field} = "{found}"',
                f"field {field}: expected {allowed}, found '{found}': see examples/agent.toml",
            )
            for field, found, allowed in (
                ("backend", "trt", "auto, ort or tensorrt"),
                ("precision", "FP16", "fp16, fp32, fp8 or int8"),
                (
                    "board",
                    "orin",
                    "agx-orin, agx-thor, agx-xavier, auto, drive-orin, igx-orin, igx-thor, nano, nano-2gb, orin-nano, "
                    "orin-nx, thor, tx1, tx2, tx2-nx or xavier-nx",
                ),
                ("cuda", "cupy", "auto, ctypes, cuda-bindings or pycuda"),
                ("host_memory", "maped", "mapped or pinned"),
            )
        ],
    ],
)
def test_an_agent_file_that_contradicts_itself_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = write(tmp_path, AGENT.replace(old, new, 1))
    with pytest.raises(DevitError, match=re.escape(said)) as error:
        load_agent_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


def test_an_agent_off_this_machine_needs_keys(tmp_path: Path) -> None:
    text = "\n".join(line for line in AGENT.splitlines() if "_key" not in line)
    with pytest.raises(InputError, match="another machine's address needs node_public_key and secret_key"):
        load_agent_config(write(tmp_path, text))
    assert load_agent_config(write(tmp_path, text.replace("10.0.0.2", "127.0.0.1"))).node_public_key == ""
