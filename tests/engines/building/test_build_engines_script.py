"""The script that one runs on a Jetson: what it calls, what it installs, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "engines" / "build-engines.sh"
BUNDLE = REPOSITORY / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
BOARDS = REPOSITORY / "tests" / "data" / "boards"
SYSTEM_PATH = "/usr/bin:/bin"

# Says how it was called, a word per line; refuses as a doctor where it is told to.
FAKE_DEVIT = """#!/bin/sh
printf '[%s]' "$@"
echo
[ "$1" != doctor ] || exit "${DOCTOR_SAYS:-0}"
"""

# Makes an "environment" whose pip writes a devit, and keeps a record of its calls; or hangs, or fails.
FAKE_PYTHON = """#!/bin/sh
record=%(record)s
printf '[%%s]' "$@" >>"$record"
echo >>"$record"
case $1 in
-c) exit "${TOO_OLD:-0}" ;;
--version) echo "Python 3.8.10" ;;
-m)
    case $2 in
    venv)
        [ -z "${VENV_FAILS:-}" ] || exit 1
        mkdir -p "$4/bin"
        cp "$0" "$4/bin/python"
        ;;
    pip)
        [ -z "${PIP_FAILS:-}" ] || exit 1
        if [ -n "${PIP_HANGS:-}" ]; then
            echo "Collecting devit"
            exec sleep 60
        fi
        cp %(devit)s "$(dirname "$0")/devit"
        ;;
    esac
    ;;
esac
"""


class Device:
    """A folder with commands, a clone with spaces in its path, and a record of what Python was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = folder / "commands"
        self.commands.mkdir()
        self.clone = folder / "a clone"
        (self.clone / "engines").mkdir(parents=True)
        for name in ("pyproject.toml", "constraints.txt", "engines/build-engines.sh"):
            shutil.copy(REPOSITORY / name, self.clone / name)
        self.bundle = folder / "the bundle"
        self.bundle.mkdir()
        (self.bundle / "manifest.json").write_text("{}")
        self.record = folder / "record"
        self.put(folder / "devit", FAKE_DEVIT)
        names = {"record": f"'{self.record}'", "devit": f"'{folder / 'devit'}'"}
        self.put(self.commands / "python3", FAKE_PYTHON % names)

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def install_devit(self) -> None:
        shutil.copy(self.folder / "devit", self.commands / "devit")

    def environment(self, tree: str = "laptop", **more: str) -> dict[str, str]:
        return {"PATH": f"{self.commands}:{SYSTEM_PATH}", "DEVIT_ROOT": str(BOARDS / tree), **more}

    def run(self, *arguments: str | Path, tree: str = "laptop", **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.clone / "engines/build-engines.sh"), *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(tree, **more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def test_the_script_is_posix_sh() -> None:
    shell = shutil.which("dash") or "/bin/sh"
    subprocess.run([shell, "-n", SCRIPT], check=True, timeout=60)
    assert SCRIPT.read_text().startswith("#!/bin/sh\n")
    assert os.access(SCRIPT, os.X_OK)


def test_with_devit_on_the_path_it_examines_then_builds_and_installs_nothing(device: Device) -> None:
    device.install_devit()
    words = ("--precision=int8", "--prefer", "latency", "--cuda", "ctypes", "--store", "a store")
    done = device.run("--submodels", "0,2", device.bundle, "--baseline", *words)
    assert done.returncode == 0, done.stderr
    passed = "[--baseline][--precision][int8][--prefer][latency][--cuda][ctypes][--store][a store]"
    assert done.stdout == f"[build][{device.bundle}][--submodels][0,2]{passed}\n"
    assert done.stderr == f"[doctor][--root][{BOARDS / 'laptop'}][--store][a store]\n"
    assert not device.record.exists()


def test_standard_output_holds_nothing_but_what_devit_build_prints(device: Device) -> None:
    """So that --json can be piped."""
    device.install_devit()
    assert device.run(device.bundle, "--json").stdout == f"[build][{device.bundle}][--json]\n"


def test_it_stops_where_the_doctor_refuses(device: Device) -> None:
    device.install_devit()
    done = device.run(device.bundle, DOCTOR_SAYS="1")
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--sumbodels", "1"], "unknown option --sumbodels"),
        (["--store"], "--store: a value is missing"),
        (["one", "two"], "expected one bundle, found one and two"),
        ([], "expected a bundle, found none"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_starts_nothing(device: Device, wrong: list[str], reason: str) -> None:
    done = device.run(*wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["usage: build-engines.sh BUNDLE [OPTIONS], see --help", f"error: {reason}"]
    assert not device.record.exists()


def test_the_help_names_every_option_with_its_default(device: Device) -> None:
    done = device.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("submodels", "baseline", "precision", "prefer", "cuda", "store", "venv"):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"  --{option}"))
        assert "(default: " in line


@pytest.mark.parametrize(
    ("tree", "extras"),
    [
        ("laptop", "agent"),
        ("raspberry-pi-5", "agent"),
        ("orin-nano-jp6.2", "agent,jetson6"),
        ("agx-thor-jp7.0", "agent,jetson7"),
        ("agx-orin-jp7.2", "agent,jetson7"),
    ],
)
def test_without_devit_it_makes_an_environment_that_fits_the_board(device: Device, tree: str, extras: str) -> None:
    done = device.run(device.bundle, "--submodels", "1", tree=tree)
    assert done.returncode == 0, done.stderr
    venv = device.clone / ".venv"
    checks, made, installed = device.record.read_text().splitlines()
    assert checks.startswith("[-c]")
    assert made == f"[-m][venv][--system-site-packages][{venv}]"
    assert installed == (
        f"[-m][pip][install][--disable-pip-version-check][--constraint][{device.clone}/constraints.txt]"
        f"[{device.clone}[{extras}]]"
    )
    assert done.stdout == f"[build][{device.bundle}][--submodels][1]\n"
    # The second time there is one.
    assert device.run(device.bundle, tree=tree).returncode == 0
    assert len(device.record.read_text().splitlines()) == 3


def test_a_named_environment_is_taken_before_the_path_and_lies_where_the_caller_says(device: Device) -> None:
    device.install_devit()
    done = device.run(device.bundle, "--venv", "new/my env")
    assert done.returncode == 0, done.stderr
    assert (device.folder / "new" / "my env" / "bin" / "devit").exists()
    assert not (device.clone / ".venv").exists()


def test_called_through_a_link_it_finds_its_clone(device: Device) -> None:
    link = device.commands / "build"
    link.symlink_to(device.clone / "engines/build-engines.sh")
    subprocess.run([link, device.bundle], env=device.environment(), capture_output=True, timeout=60, check=True)
    assert (device.clone / ".venv/bin/devit").exists()


@pytest.mark.parametrize(
    ("failing", "cure"), [("VENV_FAILS", "apt install python3-venv"), ("PIP_FAILS", "the network")]
)
def test_what_could_not_be_made_whole_is_removed(device: Device, failing: str, cure: str) -> None:
    done = device.run(device.bundle, **{failing: "1"})
    assert (done.returncode, done.stdout) == (1, "")
    assert cure in error_line(done)
    assert not (device.clone / ".venv").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_install_leaves_nothing(device: Device, number: signal.Signals, code: int) -> None:
    """As a terminal does it: the signal goes to the script and to the pip that it waits for."""
    with subprocess.Popen(
        [device.clone / "engines/build-engines.sh", device.bundle],
        env=device.environment(PIP_HANGS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stderr is not None
        assert "installing devit[agent]" in child.stderr.readline()
        assert "Collecting" in child.stderr.readline()
        assert (device.clone / ".venv").exists()
        os.killpg(child.pid, number)
        child.communicate(timeout=30)
    assert child.returncode == code
    assert not (device.clone / ".venv").exists()


def test_a_folder_that_is_in_the_way_is_neither_used_nor_removed(device: Device) -> None:
    kept = device.clone / ".venv" / "kept"
    kept.mkdir(parents=True)
    done = device.run(device.bundle)
    assert done.returncode == 1
    assert "choose another with --venv" in error_line(done)
    assert kept.exists()


@pytest.mark.parametrize(("tree", "release"), [("xavier-nx-jp5.1", "35"), ("nano-jp4.6", "32")])
def test_older_boards_are_refused_before_anything_is_installed(device: Device, tree: str, release: str) -> None:
    """Devit itself cannot be installed there, so its doctor could not say it."""
    done = device.run(device.bundle, tree=tree)
    assert done.returncode == 1
    assert f"expected JetPack 6.0 or later, found L4T {release}" in error_line(done)
    assert not device.record.exists()


def test_a_python_below_the_floor_is_named(device: Device) -> None:
    done = device.run(device.bundle, TOO_OLD="1")
    assert done.returncode == 1
    assert "found Python 3.8.10" in error_line(done)
    assert not (device.clone / ".venv").exists()


def test_nothing_is_installed_for_what_is_no_bundle_or_outside_a_clone(device: Device) -> None:
    done = device.run("nowhere")
    assert (done.returncode, "nowhere: expected a bundle" in error_line(done)) == (1, True)
    (device.clone / "pyproject.toml").unlink()
    done = device.run(device.bundle)
    assert (done.returncode, "run this script from its place in a clone" in error_line(done)) == (1, True)
    assert not device.record.exists()


@pytest.mark.nightly(part="installs")
@pytest.mark.timeout(600)
def test_the_whole_of_it_builds_the_shipped_bundle_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """Really: venv, pip install with the packages it downloads, doctor, two engines checked with golden images."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "python3").symlink_to(sys.executable)
    venv, store = tmp_path / "an env", tmp_path / "a store"
    done = subprocess.run(
        [SCRIPT, BUNDLE, "--submodels", "0,2", "--venv", venv, "--store", store, "--json"],
        cwd=tmp_path,
        # Packages come as pip is set up for this user; a devit on the PATH must not be found.
        env=os.environ | {"PATH": f"{commands}:{SYSTEM_PATH}"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    engines = json.loads(done.stdout)
    assert [engine["model"] for engine in engines] == [0, 2]
    assert all(Path(engine["path"]).is_relative_to(store) for engine in engines)
    assert "ONNX Runtime" in done.stderr
