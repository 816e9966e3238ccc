"""What the doctor says of nine boards, and of each trap between a Jetson and its TensorRT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.test_elf import elf

from devit_contract.errors import EngineError
from devit_engines.doctor.examine import examine, refuse
from devit_engines.doctor.finding import Finding
from devit_engines.doctor.interpreter import Interpreter

BOARDS = Path(__file__).parents[1] / "data" / "boards"
VENV = "home/user/devit/venv"
LIBRARIES = "usr/lib/aarch64-linux-gnu"
JETSONS = ["agx-orin-jp6.0", "orin-nano-jp6.2", "orin-nx-jp6.1-container", "agx-thor-jp7.0", "agx-orin-jp7.2"]
RUN = (
    "from devit_contract.service.terminal import run; "
    "from devit_engines.doctor.cli import app; run(app, 'devit doctor')"
)


def interpreter(root: Path, version: str | None = None) -> Interpreter:
    """The Python of a tree's virtual environment, with the path that it would have there."""
    prefix = root / VENV
    found = [path.name.removeprefix("python") for path in prefix.glob("lib/python*")]
    label = version or next(iter(found), "3.10")
    major, minor = map(int, label.split("."))
    paths = [prefix / f"lib/python{label}/site-packages"]
    if Interpreter((major, minor), prefix, ()).sees_system_packages:
        debian = (
            "usr/local/lib/python{}/dist-packages",
            "usr/lib/python3/dist-packages",
            "usr/lib/python{}/dist-packages",
        )
        paths += [root / place.format(label) for place in debian]
    return Interpreter((major, minor), prefix, tuple(paths))


def look(root: Path, python: Interpreter | None = None, free_bytes: int = 10**11) -> dict[str, Finding]:
    findings = examine(root, python or interpreter(root), Path("/store"), free_bytes)
    for finding in findings:
        assert (finding.cure is None) == (finding.state == "good"), finding
        assert "\n" not in f"{finding.found}{finding.cure}", finding
    return {finding.name: finding for finding in findings}


def copy(tree: str, folder: Path) -> Path:
    return Path(shutil.copytree(BOARDS / tree, folder / tree, symlinks=True))


def install(folder: Path, name: str, version: str) -> None:
    """Put the metadata of a package into a folder of the path."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def remove_binding(root: Path) -> None:
    for path in root.glob("usr/lib/python3*/dist-packages/tensorrt*"):
        shutil.rmtree(path)


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return copy("orin-nano-jp6.2", tmp_path)


@pytest.fixture
def site(nano: Path) -> Path:
    return nano / VENV / "lib/python3.10/site-packages"


# --- whole boards


def test_an_agx_orin_in_good_order_is_good_in_every_line() -> None:
    found = look(BOARDS / "agx-orin-jp6.0")
    assert {finding.state for finding in found.values()} == {"good"}
    assert found["board"].found == "NVIDIA Jetson AGX Orin Developer Kit, sm_87"
    assert found["JetPack"].found == "6.0 (L4T 36.3.0), brings CUDA 12.2, TensorRT 8.6"
    assert found["TensorRT"].found == "8.6.2, apt, for Python 3.10"
    assert found["CUDA binding"].found == "ctypes, pycuda 2026.1"
    assert found["engines"].found == "built and run by TensorRT 8.6.2 or ONNX Runtime 1.23.2"


def test_a_board_as_it_starts_is_warned_of_clocks_and_of_little_memory() -> None:
    found = look(BOARDS / "orin-nano-jp6.2")
    warned = {name for name, finding in found.items() if finding.state != "good"}
    assert warned == {"clocks", "memory", "over-current", "desktop"}
    assert found["clocks"].cure == (
        "run sudo jetson_clocks before building or measuring: clocks decide latency and joules"
    )
    # 1,511,424 of 7,801,856 kB, and six zram devices of 650,240 kB.
    assert found["memory"].found == "1.5 of 8.0 GB available, zram 4.0 GB"


def test_a_container_without_the_hosts_libraries_runs_on_onnx_runtime() -> None:
    found = look(BOARDS / "orin-nx-jp6.1-container")
    assert found["libraries"].found.startswith("0 bytes: libcuda.so.1, libnvinfer.so.10.3.0, ")
    assert "--runtime nvidia" in str(found["libraries"].cure)
    assert "--runtime nvidia" in str(found["CUDA binding"].cure)
    assert "/var/lib/nvpmodel" in str(found["power mode"].cure)
    assert (found["engines"].state, found["engines"].found) == (
        "warning",
        "ONNX Runtime 1.23.2 on the CPU; not TensorRT, as warned above",
    )
    refuse(list(found.values()))


@pytest.mark.parametrize(("tree", "is_confirmed"), [("agx-thor-jp7.0", False), ("agx-orin-jp7.2", True)])
def test_jetpack_7_builds_with_tensorrt_and_says_what_is_unconfirmed(tree: str, is_confirmed: bool) -> None:
    found = look(BOARDS / tree)
    assert found["JetPack"].found.endswith(", unconfirmed") != is_confirmed
    assert found["TensorRT"].state == found["libraries"].state == found["engines"].state == "good"
    assert "TensorRT" in found["engines"].found
    assert ("(with FP8)" in found["engines"].found) == ("thor" in tree)  # SM 11.0 has it, SM 8.7 has not


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (
            "xavier-nx-jp5.1",
            "JetPack: expected 6.0 or later, found 5.1.x (L4T 35.4.1): Python 3.8, and TensorRT 8.5 has no "
            "LayerNormalization: JetPack 5 is the last one for this board: take an Orin or a Thor",
        ),
        (
            "nano-jp4.6",
            "JetPack: expected 6.0 or later, found 4.6.x (L4T 32.7.1): Python 3.6, and TensorRT 8.2 has no "
            "LayerNormalization: JetPack 4 is the last one for this board: take an Orin or a Thor",
        ),
    ],
)
def test_older_boards_are_refused_with_the_reason(tree: str, reason: str) -> None:
    with pytest.raises(EngineError) as caught:
        refuse(list(look(BOARDS / tree).values()))
    assert str(caught.value) == reason


def test_an_orin_on_jetpack_5_is_told_to_flash_a_later_one(nano: Path) -> None:
    (nano / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 6.1, GCID: 1, BOARD: t186ref\n")
    assert look(nano)["JetPack"].cure == "flash JetPack 6.0 or later"


@pytest.mark.parametrize("tree", ["laptop", "raspberry-pi-5"])
def test_onnx_runtime_alone_is_good_where_there_is_no_jetson(tree: str) -> None:
    found = look(BOARDS / tree)
    assert {finding.state for finding in found.values()} == {"good"}
    assert not {"JetPack", "power mode", "clocks", "libraries", "CUDA", "CUDA binding"} & found.keys()
    assert found["TensorRT"].found == "none: engines run on ONNX Runtime"


# --- releases


def test_a_release_newer_than_the_table_is_a_warning_and_no_refusal(nano: Path) -> None:
    (nano / "etc/nv_tegra_release").write_text("# R40 (release), REVISION: 1.0, GCID: 1, BOARD: generic\n")
    found = look(nano)
    assert (found["JetPack"].state, found["engines"].state) == ("warning", "good")
    assert "L4T 40.1.0" in found["JetPack"].found


# --- which TensorRT


def test_a_binding_for_another_python_names_the_one_to_take(nano: Path) -> None:
    install(nano / VENV / "lib/python3.12/site-packages", "onnxruntime", "1.32.0")
    found = look(nano, interpreter(nano, "3.12"))
    assert found["TensorRT"].found == "10.3.0, apt, for Python 3.10, but this is Python 3.12"
    assert "/usr/bin/python3.10 -m venv --system-site-packages .venv" in str(found["TensorRT"].cure)
    assert found["engines"].state == "warning"


def test_a_virtual_environment_that_hides_the_system_is_told_how_to_open(nano: Path) -> None:
    configuration = nano / VENV / "pyvenv.cfg"
    configuration.write_text(configuration.read_text().replace("= true", "= false"))
    found = look(nano)
    assert found["TensorRT"].found == "10.3.0, apt, which this virtual environment does not see"
    assert found["TensorRT"].cure == f"run /usr/bin/python3.10 -m venv --system-site-packages {nano / VENV}"


def test_what_opens_a_virtual_environment_opens_it(tmp_path: Path) -> None:
    """The cure is run on a real environment: it keeps what is installed and changes pyvenv.cfg."""
    command = [sys.executable, "-m", "venv", "--without-pip"]
    prefix = tmp_path / "venv"
    subprocess.run([*command, prefix], check=True, timeout=60)
    kept = prefix / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "kept.py"
    kept.touch()
    closed = Interpreter((3, sys.version_info.minor), prefix, ())
    assert (closed.is_venv, closed.sees_system_packages) == (True, False)
    subprocess.run([*command, "--system-site-packages", prefix], check=True, timeout=60)
    assert closed.sees_system_packages
    assert kept.exists()


def test_a_python_of_its_own_beside_the_systems_is_told_apart(nano: Path) -> None:
    """Built by pyenv or conda: the same version, no virtual environment, another path."""
    own = Interpreter((3, 10), nano / "home/user/.pyenv", ())
    assert look(nano, own)["TensorRT"].found == "10.3.0, apt, of the system's Python 3.10, which this is not"


def test_a_wheel_from_pypi_on_jetpack_6_has_no_kernels_for_orin(nano: Path, site: Path) -> None:
    for name in ("tensorrt", "tensorrt-cu12", "tensorrt-cu12-bindings", "tensorrt-cu12-libs"):
        install(site, name, "10.7.0")
    found = look(nano)
    assert found["TensorRT"].found == "10.7.0, a wheel from PyPI, without kernels for this GPU (SM 87)"
    assert found["TensorRT"].cure == (
        "run pip uninstall tensorrt tensorrt-cu12 tensorrt-cu12-bindings tensorrt-cu12-libs"
    )
    assert found["engines"].state == "warning"
    remove_binding(nano)
    for path in nano.glob(f"{LIBRARIES}/libnvinfer*"):
        path.unlink()
    assert str(look(nano)["TensorRT"].cure).endswith(", then sudo apt install tensorrt python3-libnvinfer")


def test_a_wheel_beside_apts_is_a_warning_where_it_would_run(tmp_path: Path) -> None:
    thor = copy("agx-thor-jp7.0", tmp_path)
    site = thor / VENV / "lib/python3.12/site-packages"
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs"):
        install(site, name, "11.4.0.106")
    found = look(thor)["TensorRT"]
    assert found.found == "11.4.0.106, a wheel from PyPI, in front of the system's 10.13.3"
    assert "keep one of them" in str(found.cure)
    for path in thor.glob(f"{LIBRARIES}/libnvinfer*"):
        path.unlink()
    assert look(thor)["TensorRT"].found.startswith("11.4.0.106, a wheel from PyPI; unconfirmed here: ")
    assert look(thor)["engines"].state == "good"


def test_a_wheel_whose_libraries_could_not_be_fetched_is_a_warning(tmp_path: Path) -> None:
    laptop = copy("laptop", tmp_path)
    install(laptop / VENV / "lib/python3.12/site-packages", "tensorrt-cu12-bindings", "10.13.3.9")
    assert look(laptop)["TensorRT"].found == "10.13.3.9, a wheel from PyPI, without its libraries"


def test_libraries_without_a_binding_ask_for_its_package(nano: Path) -> None:
    remove_binding(nano)
    found = look(nano)["TensorRT"]
    assert found.found == "libnvinfer 10.3.0 without its Python binding"
    assert found.cure == "run sudo apt install python3-libnvinfer"


def test_a_binding_without_libraries_asks_for_them(nano: Path) -> None:
    for path in nano.glob(f"{LIBRARIES}/libnvinfer*"):
        path.unlink()
    assert look(nano)["TensorRT"].found == "10.3.0, apt, for Python 3.10, but no libnvinfer"
    remove_binding(nano)
    assert look(nano)["TensorRT"].cure == "run sudo apt install tensorrt python3-libnvinfer"


def test_a_binding_of_another_major_version_than_its_library_is_a_warning(nano: Path, site: Path) -> None:
    install(site, "tensorrt", "8.6.2")
    found = look(nano)["TensorRT"]
    assert found.found == "8.6.2, a wheel, for Python 3.10, but libnvinfer is 10.3.0"
    assert found.cure == "run pip uninstall tensorrt"


# --- libraries and CUDA


@pytest.mark.parametrize(
    ("release", "container", "cure"),
    [
        ("36 (release), REVISION: 5.0", False, "run sudo apt install nvidia-l4t-dla-compiler"),
        ("36 (release), REVISION: 5.0", True, "start the container with --runtime nvidia"),
        ("39 (release), REVISION: 2.0", True, "take an image made for this JetPack"),
    ],
)
def test_a_missing_dla_compiler_is_named_with_its_cure(nano: Path, release: str, container: bool, cure: str) -> None:
    """TensorRT 10.3 links against it; JetPack 7.2's hosts have none to mount into an older image."""
    (nano / LIBRARIES / "nvidia/libnvdla_compiler.so").unlink()
    (nano / "etc/nv_tegra_release").write_text(f"# R{release}, GCID: 1, BOARD: generic\n")
    if container:
        (nano / ".dockerenv").touch()
    found = look(nano)
    assert found["libraries"].found == "libnvinfer 10.3.0 needs libnvdla_compiler.so, which is absent"
    assert str(found["libraries"].cure).startswith(cure)
    assert found["engines"].state == "warning"


@pytest.mark.parametrize(
    ("version", "needed", "found"),
    [
        (
            "10.11.0",
            ("libnvdla_compiler.so", "libc.so.6"),
            "libnvinfer 10.11.0 needs libnvdla_compiler.so, which is absent",
        ),
        ("10.3.0", ("libc.so.6",), None),
        ("10.16.2", ("libnvdla_compiler.so",), "libnvinfer 10.16.2 needs libnvdla_compiler.so, which is absent"),
        ("10.16.2", ("libnvJitLink.so.13",), None),
        ("10.16.2", ("libnvstrange.so.1",), "libnvinfer 10.16.2 needs libnvstrange.so.1, which is absent"),
    ],
)
def test_what_libnvinfer_needs_is_read_from_the_file_whatever_its_version(
    tmp_path: Path, version: str, needed: tuple[str, ...], found: str | None
) -> None:
    """An image of before JetPack 7 on a newer host: there is no libnvdla_compiler.so that could be mounted."""
    root = copy("agx-orin-jp7.2", tmp_path)
    (root / ".dockerenv").touch()
    for path in (root / LIBRARIES).rglob("libnv*"):
        path.unlink()
    (root / LIBRARIES / f"libnvinfer.so.{version}").write_bytes(elf(*needed))
    (root / "usr/local/cuda/lib64").mkdir(parents=True, exist_ok=True)
    (root / "usr/local/cuda/lib64/libnvJitLink.so.13").write_bytes(elf())
    libraries = look(root)["libraries"]
    if found is None:
        assert libraries.state == "good"
    else:
        assert (libraries.state, libraries.found) == ("warning", found)
        assert "nvdla" not in found or str(libraries.cure).startswith("take an image made for this JetPack")


def test_a_libnvinfer_that_cannot_be_read_is_judged_by_its_version(tmp_path: Path) -> None:
    root = copy("agx-orin-jp7.2", tmp_path)
    for path in (root / LIBRARIES).rglob("libnv*"):
        path.unlink()
    for version, state in (("10.3.0", "warning"), ("10.11.0", "warning"), ("10.16.2", "good")):
        (root / LIBRARIES / f"libnvinfer.so.{version}").write_text("a stand-in")
        assert look(root)["libraries"].state == state


def test_empty_libraries_on_the_board_itself_are_installed_again(nano: Path) -> None:
    (nano / LIBRARIES / "nvidia/libcuda.so.1.1").write_bytes(b"")
    found = look(nano)
    assert found["libraries"].found == "0 bytes: libcuda.so.1, libcuda.so.1.1"
    assert "apt install --reinstall" in str(found["libraries"].cure)
    shutil.rmtree(nano / LIBRARIES)
    assert look(nano)["libraries"].found == "none of libcuda and libnvinfer"


def test_a_link_out_of_the_tree_is_not_followed(nano: Path, tmp_path: Path) -> None:
    """The root of a mounted disk holds absolute links, which here would lead to this machine's files."""
    (tmp_path / "own").write_bytes(b"")
    link = nano / LIBRARIES / "libnvinfer.so.10"
    link.symlink_to(tmp_path / "own")
    assert look(nano)["libraries"].state == "good"
    shutil.rmtree(nano / "usr/local/cuda")
    (tmp_path / "cuda-13").mkdir()
    (tmp_path / "cuda-13/version.txt").write_text("CUDA Version 13.0.0\n")
    (nano / "usr/local/cuda").symlink_to(tmp_path / "cuda-13")
    assert look(nano)["CUDA"].found == "no toolkit, the driver speaks 12.6"


def test_a_binding_of_cuda_13_on_jetpack_6_names_the_one_that_fits(nano: Path, site: Path) -> None:
    shutil.rmtree(site / "cuda_python-12.6.2.post1.dist-info")
    install(site, "cuda-python", "13.5.0")
    install(site, "cuda-bindings", "13.5.0")
    found = look(nano)
    # No release of cuda-bindings has the number 12.6: it came inside cuda-python.
    assert found["CUDA binding"].cure == "run pip uninstall cuda-bindings, then pip install 'cuda-python==12.6.*'"
    assert found["CUDA binding"].found.startswith("cuda-bindings 13.5.0 fails on a driver of CUDA 12.6 (error 35)")
    # ctypes on libcuda works all the same.
    assert found["engines"].state == "good"


def test_a_binding_inside_cuda_python_counts() -> None:
    assert look(BOARDS / "orin-nano-jp6.2")["CUDA binding"].found == "ctypes, cuda-python 12.6.2.post1"


def test_a_binding_older_than_the_driver_fits(tmp_path: Path) -> None:
    thor = copy("agx-thor-jp7.0", tmp_path)
    site = thor / VENV / "lib/python3.12/site-packages"
    shutil.rmtree(site / "cuda_bindings-13.0.3.dist-info")
    install(site, "cuda-bindings", "12.9.4")
    assert look(thor)["CUDA binding"] == Finding("CUDA binding", "ctypes, cuda-bindings 12.9.4")


def test_a_toolkit_newer_than_the_driver_is_a_warning(nano: Path) -> None:
    version = nano / "usr/local/cuda/version.json"
    version.write_text(version.read_text().replace("12.6.3", "13.0.1"))
    found = look(nano)["CUDA"]
    assert (found.state, found.found) == ("warning", "toolkit 13.0.1, the driver speaks 12.6")


def test_the_toolkits_version_is_read_in_both_of_its_formats() -> None:
    assert look(BOARDS / "nano-jp4.6")["CUDA"].found == "toolkit 10.2.300, the driver speaks 10.2"
    assert look(BOARDS / "agx-orin-jp7.2")["CUDA"].found == "toolkit 13.2.1, the driver speaks 13.2"


# --- memory, disk, Python, ONNX Runtime


def test_a_disk_with_less_than_a_gigabyte_is_a_warning() -> None:
    found = look(BOARDS / "laptop", free_bytes=900_000_000)["disk"]
    assert (found.state, found.found) == ("warning", "0.9 GB free for engines in /store")


def test_swap_and_zram_are_told_apart(nano: Path) -> None:
    with (nano / "proc/swaps").open("a") as file:
        file.write("/swapfile                               file\t\t8388604\t\t0\t\t-2\n")
    assert look(nano)["memory"].found == "1.5 of 8.0 GB available, zram 4.0 GB, swap 8.6 GB"


def test_a_python_below_the_floor_is_refused(nano: Path) -> None:
    with pytest.raises(EngineError, match=r"^Python: expected 3\.10 or later, found 3\.8, a virtual environment"):
        refuse(list(look(nano, interpreter(nano, "3.8")).values()))


def test_nothing_to_build_with_is_refused(tmp_path: Path) -> None:
    laptop = copy("laptop", tmp_path)
    shutil.rmtree(laptop / VENV / "lib/python3.12/site-packages/onnxruntime-1.32.0.dist-info")
    found = look(laptop)
    assert found["ONNX Runtime"].state == "warning"
    with pytest.raises(EngineError, match=r"^engines: expected TensorRT or ONNX Runtime, found neither: run pip"):
        refuse(list(found.values()))


def test_tensorrt_alone_suffices(nano: Path, site: Path) -> None:
    shutil.rmtree(site / "onnxruntime-1.23.2.dist-info")
    found = look(nano)
    assert found["ONNX Runtime"].state == "warning"
    assert found["engines"] == Finding("engines", "built and run by TensorRT 10.3.0")


def test_onnx_runtime_for_gpus_counts_and_says_what_is_used(nano: Path, site: Path) -> None:
    shutil.rmtree(site / "onnxruntime-1.23.2.dist-info")
    install(site, "onnxruntime-gpu", "1.23.0")
    assert look(nano)["ONNX Runtime"].found == "1.23.0 (onnxruntime-gpu: devit uses its CPU provider)"


def test_what_an_interrupted_uninstall_leaves_is_no_package(nano: Path, site: Path) -> None:
    (site / "onnxruntime-1.23.2.dist-info/METADATA").unlink()
    assert look(nano)["ONNX Runtime"].found == "none"


def test_a_container_of_release_39_without_a_device_tree_is_told_how_to_see_it(tmp_path: Path) -> None:
    orin = copy("agx-orin-jp7.2", tmp_path)
    shutil.rmtree(orin / "proc/device-tree")
    (orin / ".dockerenv").touch()
    assert "systempaths=unconfined" in str(look(orin)["board"].cure)


FILES = [
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
    "proc/meminfo",
    "proc/swaps",
    "proc/device-tree/model",
    "usr/local/cuda/version.json",
    f"{VENV}/pyvenv.cfg",
]
WORDS = [
    "# R36 (release), REVISION: ",
    ".",
    "4.3",
    "pmode:",
    "MemTotal: ",
    "MemAvailable: ",
    " kB\n",
    "/dev/zram0 x ",
    "9",
]
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)), max_size=8).map("".join)


@given(texts=st.lists(TEXTS, min_size=len(FILES), max_size=len(FILES)))
def test_no_file_content_is_a_bug(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Whatever stands in them, the files of a strange board give findings and no traceback."""
    root = tmp_path_factory.mktemp("root")
    for name, text in zip(FILES, texts, strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, errors="replace")
    assert look(root)["engines"].state == "refused"


# --- the command


def doctor(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_finds_this_machine_fit_and_prints_80_columns(tmp_path: Path) -> None:
    done = doctor("--store", tmp_path / "none" / "yet")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    table = lines[: lines.index(next(line for line in lines if line.startswith(" engines")))]
    assert max(map(len, table)) <= 80
    assert "ONNX Runtime" in done.stdout
    assert not (tmp_path / "none").exists()


def test_the_command_prints_json_for_programs() -> None:
    findings = json.loads(doctor("--root", BOARDS / "orin-nano-jp6.2", "--json").stdout)
    assert all(list(finding) == ["name", "found", "state", "cure"] for finding in findings)
    (release,) = (finding for finding in findings if finding["name"] == "JetPack")
    assert (release["state"], release["cure"]) == ("good", None)
    assert release["found"].startswith("6.2 (L4T 36.4.3)")


def test_the_command_shows_all_and_then_refuses_in_one_line() -> None:
    done = doctor("--root", BOARDS / "xavier-nx-jp5.1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: JetPack: expected 6.0 or later, found 5.1.x (L4T 35.4.1)")
    assert done.stderr.count("\n") == 1
    assert "MODE_15W_6CORE" in done.stdout
    # Each cure is one whole line, so that it can be copied.
    assert "\nJetPack: JetPack 5 is the last one for this board: take an Orin or a Thor\n" in done.stdout


def test_a_root_that_is_no_folder_is_a_named_failure(tmp_path: Path) -> None:
    done = doctor("--root", tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: expected a folder")


def test_the_doctor_imports_nothing_that_it_looks_for() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom devit_engines.doctor.examine import examine\n"
        "from devit_engines.doctor.interpreter import Interpreter\n"
        "examine(Path('/'), Interpreter.running(), Path('/store'), 0)\n"
        "print([name for name in ('tensorrt', 'onnxruntime', 'pycuda', 'cuda', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
