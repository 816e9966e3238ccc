"""Makes systemd's files for an agent or a node on this device, and writes those that differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from devit_contract.artefacts.files import named_failure, read_toml_tables, write_bytes
from devit_contract.errors import DevitError, InputError
from devit_edge_agent.sources.open import is_csi

UNITS = Path("/etc/systemd/system")
_CSI = "20-csi.conf"
GROUPS = ("video", "render")
"""To which the nodes of GPUs and cameras belong; docker/compose.yaml names them too."""
RELEASE = Path("/opt/devit/current")
"""What the units name until they are made for an installation."""
_HOMES = {Path("/home"), Path("/root"), Path("/run/user")}
"""What ProtectHome= hides."""
_NODE = re.compile(
    r"nvmap|nvgpu|nvhost-.+|nvidia.*|nvsciipc|host1x-fence|dri/renderD\d+|v4l2-nv.+"
    r"|video\d+|media\d+|v4l-subdev\d+|capture-(?:vi|isp)-channel\d+"
)
"""Below /dev, of GPUs and cameras. JetPack 6 has nvmap, nvhost-* and nvgpu/, JetPack 7 has nvidia*."""
_CONTAINER_LIST = Path("etc/nvidia-container-runtime/host-files-for-container.d/devices.csv")


@dataclass(frozen=True)
class ServiceFile:
    """A file of systemd's."""

    path: Path
    """On the device that it is for, absolute."""
    content: str


@dataclass(frozen=True)
class Written:
    """A file, and whether it was changed."""

    path: Path
    """Including the root."""
    was_changed: bool


def agent_files(prefix: Path, root: Path) -> list[ServiceFile]:
    """Make what ``edge-agent@NAME`` of a virtual environment needs, on the device whose ``/dev`` is below ``root``.

    An agent whose configuration is there already, with a CSI camera as its source, gets a drop-in of its own.
    """
    unit = _for_installation(_shipped("devit_edge_agent", "edge-agent@.service"), prefix)
    csi = _shipped("devit_edge_agent", "csi.conf")
    return [
        ServiceFile(UNITS / "edge-agent@.service", unit),
        ServiceFile(UNITS / "edge-agent@.service.d" / "10-devices.conf", _devices_drop_in(device_nodes(root))),
        ServiceFile(Path("/etc/sysusers.d/devit.conf"), _shipped("devit_edge_agent", "sysusers.conf")),
        ServiceFile(Path("/etc/tmpfiles.d/devit.conf"), _shipped("devit_edge_agent", "tmpfiles.conf")),
        *(ServiceFile(UNITS / f"edge-agent@{name}.service.d" / _CSI, csi) for name in _csi_agents(root)),
    ]


def _csi_agents(root: Path) -> Iterator[str]:
    """Name the agents whose source is a CSI camera; of a file that is broken, the agent itself will say so."""
    for path in sorted((root / "etc/devit").glob("*.toml")):
        with suppress(DevitError):
            if is_csi(str(read_toml_tables(path, "").get("source", ""))):
                yield path.stem


def remove_stale(wanted: Sequence[ServiceFile], root: Path) -> list[Path]:
    """Remove the drop-ins of agents whose source is no CSI camera any more; give what was removed."""
    kept = {root / file.path.relative_to("/") for file in wanted}
    found = (root / UNITS.relative_to("/")).glob(f"edge-agent@*.service.d/{_CSI}")
    stale = [path for path in sorted(found) if path not in kept]
    for path in stale:
        with named_failure(f"{path}: cannot be removed", "run it as root"):
            path.unlink()
    return stale


def fusion_files(prefix: Path, bundle: Path) -> list[ServiceFile]:
    """Make what ``fusion-node`` of a virtual environment needs to serve a bundle."""
    unit = _shipped("devit_fusion", "fusion-node.service").replace(str(RELEASE / "bundle"), _checked(bundle))
    return [ServiceFile(UNITS / "fusion-node.service", _for_installation(unit, prefix, bundle))]


def install(wanted: Sequence[ServiceFile], root: Path) -> list[Written]:
    """Write the files that are absent or differ, below ``root``.

    Raises:
        InputError: One cannot be written.
    """
    written = []
    for file in wanted:
        path, content = root / file.path.relative_to("/"), file.content.encode()
        try:
            is_as_wanted = path.read_bytes() == content
        except OSError:  # absent or unreadable
            is_as_wanted = False
        if not is_as_wanted:
            try:
                write_bytes(path, content)
            except InputError as err:
                raise InputError(f"{err}: run it as root, or choose another --root") from err
        written.append(Written(path, was_changed=not is_as_wanted))
    return written


def device_nodes(root: Path) -> list[Path]:
    """List, sorted, the nodes of GPUs and cameras below ``/dev``: those there are, and those of NVIDIA's list."""
    found = {Path("/dev") / path.relative_to(root / "dev") for path in _nodes_below(root / "dev")}
    try:
        lines = (root / _CONTAINER_LIST).read_text().splitlines()
    except OSError:  # there is none without the container runtime
        lines = []
    for line in lines:
        kind, _, name = (word.strip() for word in line.partition(","))
        is_node = kind == "dev" and name.startswith("/dev/")
        if (
            is_node and "*" not in name and _is_wanted(name.removeprefix("/dev/"))
        ):  # what a pattern means is there already
            found.add(Path(name))
    return sorted(found)


def _nodes_below(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*"):
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and (path.name == "dri" or _NODE.fullmatch(path.name)):
            yield from (
                node for node in path.rglob("*") if not node.is_dir() and _is_wanted(f"{path.name}/{node.name}")
            )
        elif not is_folder and _NODE.fullmatch(path.name):
            yield path


def _is_wanted(name: str) -> bool:
    """Whether a name below /dev is that of a GPU or camera, or of a folder of theirs."""
    return bool(_NODE.fullmatch(name)) or bool(_NODE.fullmatch(name.partition("/")[0]))


def _shipped(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text()


def _for_installation(unit: str, prefix: Path, *others: Path) -> str:
    """Name the programs of an installation; one below a home is shown to the service, and nothing else of that home."""
    unit = unit.replace(str(RELEASE / "venv"), _checked(prefix))
    hidden = [path for path in (prefix, *_base_of(prefix), *others) if not _HOMES.isdisjoint((path, *path.parents))]
    if not hidden:
        return unit
    shown = "".join(f"BindReadOnlyPaths={_checked(path)}\n" for path in dict.fromkeys(hidden))
    return unit.replace(
        "ProtectHome=yes\n",
        f"# The installation is in a home: the service sees nothing else of any home.\nProtectHome=tmpfs\n{shown}",
    )


def _base_of(prefix: Path) -> list[Path]:
    """The Python that a virtual environment was made from."""
    try:
        text = (prefix / "pyvenv.cfg").read_text()
    except OSError:  # no virtual environment, or none yet
        return []
    return [Path(home).parent for home in re.findall(r"^home\s*=\s*(.+)/?$", text, re.MULTILINE)]


def _checked(path: Path) -> str:
    """Check a path for a unit, where blanks, ``%`` and quotes have a meaning."""
    if not re.fullmatch(r"/[A-Za-z0-9._+@/-]+", str(path)):
        raise InputError(f"{path}: expected an absolute path of letters, digits and ._+@-/ for a unit: choose another")
    return str(path)


def _devices_drop_in(nodes: Sequence[Path]) -> str:
    lines = [f"SupplementaryGroups={' '.join(GROUPS)}", *(f"DeviceAllow={node} rw" for node in nodes)]
    if not nodes:
        lines = ["# Neither GPU nor camera was found."]
    origin = "# Made by devit install-service from /dev and NVIDIA's list for containers"
    return "\n".join([f"{origin}: make it again with a new JetPack.", "[Service]", *lines, ""])
