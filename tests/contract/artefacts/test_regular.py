"""Nobody waits for a pipe that lies where a file should, and no device is read for ever."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from devit_contract.artefacts.files import check_replaceable
from devit_contract.artefacts.keys import load_keys
from devit_contract.artefacts.manifest import Bundle, Preprocess
from devit_contract.artefacts.preprocess import load_image
from devit_contract.artefacts.regular import open_regular, read_regular
from devit_contract.errors import DevitError, InputError
from devit_contract.machine import memory_bytes

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
NO_FILE = "a pipe, a socket or a device, not a file"
pytestmark = pytest.mark.timeout(60)


def test_a_file_is_read_and_the_system_s_own_files_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"
    assert memory_bytes()["MemTotal"] > 0


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a device"])
def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "strange"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(str(path))
        elif kind == "device":
            path = Path("/dev/zero")
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(OSError, match=NO_FILE):
            open_regular(path)


def test_a_folder_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "fusion.safetensors", "golden.safetensors", "submodel-0.fp32.onnx"])
def test_a_bundle_with_a_pipe_in_it_is_one_line(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=rf"{re.escape(name)}: cannot be read \({NO_FILE}\): ") as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_told_wherever_a_file_of_ours_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "manifest.json"
    os.mkfifo(pipe, 0o600)
    for read in (
        lambda: load_keys(pipe),
        lambda: load_image(pipe, Preprocess(6, 8, "gray")),
        lambda: check_replaceable(tmp_path, pipe.name),
    ):
        with pytest.raises(DevitError):
            read()


def test_a_node_whose_bundle_holds_a_pipe_ends_and_says_so(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    (folder / "fusion.safetensors").unlink()
    os.mkfifo(folder / "fusion.safetensors")
    (tmp_path / "fleet.toml").write_text(
        'schema = 2\n[node]\nendpoint = "tcp://127.0.0.1:0"\nclient_endpoint = "tcp://127.0.0.1:0"\n'
        '[[device]]\nname = "jetson1"\nsubmodel = 0\n'
    )
    command = [
        "-c",
        "from devit_fusion.cli import main; main()",
        "--bundle",
        folder,
        "--fleet",
        tmp_path / "fleet.toml",
    ]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert NO_FILE in done.stderr
