"""``agent.toml``: what an agent runs, and which node it serves."""

from __future__ import annotations

from pathlib import Path

import msgspec

from devit_contract.artefacts.files import read_toml
from devit_contract.artefacts.fleet import is_loopback, parse_endpoint
from devit_contract.artefacts.keys import check_key, check_name
from devit_contract.choices import BackendChoice, BoardChoice, CudaChoice, HostMemory, Precision
from devit_contract.errors import InputError

AGENT_SCHEMA = 1
MAX_THREADS = 256
"""Of one inference: ONNX Runtime starts as many as it is told to, until memory is gone."""
_AGENT_HINT = "see examples/agent.toml"


class StandbyNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another node that this device serves when it is the active one."""

    node: str
    """Its ``endpoint``."""
    node_public_key: str = ""


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``agent.toml``; paths are relative to the file."""

    schema: int
    name: str
    submodel: int
    node: str
    """The node's ``endpoint``."""
    bundle: str
    """Bundle folder: its manifest names the engine."""
    store: str = ""
    """Engine store; empty is the user's default."""
    node_public_key: str = ""
    secret_key: str = ""
    """File with this device's secret key."""
    threads: int = 1
    """Threads of one inference on the CPU."""
    backend: BackendChoice = "auto"
    """``auto``: TensorRT's engine if there is one, else ONNX Runtime's."""
    precision: Precision | None = None
    """The lowest precision that the engine may have. By default the variant that ``devit build --prefer`` kept, else
    ``fp16`` and up."""
    cuda: CudaChoice = "auto"
    """The Python binding of CUDA."""
    host_memory: HostMemory = "pinned"
    """How images reach the GPU: ``pinned`` copies them, ``mapped`` lets the GPU read them in host memory."""
    tegrastats: tuple[str, ...] = ("tegrastats",)
    """Command that samples power, ``--interval MS`` is added: ``tegrastats``, or ``hwmon-power``, which reads the chips
    itself, every 20 ms if wanted; empty where the device has no sensor."""
    board: BoardChoice = "auto"
    """Which board this is, where its device tree does not say, as in a container: decides what its joules cover."""
    source: str = ""
    """Where the device's own images come from: ``folder:DIR``, ``gst:PIPELINE``; empty where the node sends them."""
    free_running: bool = False
    """With ``source``: work on every new image as it comes, and answer a trigger with the newest feature, instead of
    starting on the newest image when the trigger comes."""
    allowed_signers: str = ""
    """File of OpenSSH's allowed signers; with it, a bundle that is unsigned, or older than one seen, is refused."""
    standby: tuple[StandbyNode, ...] = ()
    """The fleet's other nodes. With them, this device works only for the node that it has granted its lease to."""
    root: str = "/"
    """Where /proc and /etc are looked for; another folder describes a simulated board."""


def load_agent_config(path: Path) -> AgentConfig:
    """Read ``agent.toml``; paths in the result are absolute.

    Raises:
        InputError: The file cannot be read, or a name, key or address is not usable.
        ManifestError: The format is broken.
    """
    config = read_toml(path, AgentConfig, schema=AGENT_SCHEMA, hint=_AGENT_HINT)
    check_name(config.name, f"{path}: name")
    parse_endpoint(config.node, str(path))
    if bool(config.node_public_key) != bool(config.secret_key):
        raise InputError(f"{path}: node_public_key and secret_key must be given together")
    if config.node_public_key:
        check_key(config.node_public_key, f"{path}: node_public_key")
    for node in (config.node, *(standby.node for standby in config.standby)):
        if not config.node_public_key and not is_loopback(node):
            raise InputError(f"{path}: {node}: another machine's address needs node_public_key and secret_key")
    for standby in config.standby:
        parse_endpoint(standby.node, str(path))
        if bool(standby.node_public_key) != bool(config.node_public_key):
            raise InputError(f"{path}: node_public_key of {standby.node}: expected one for each node, or for none")
        if standby.node_public_key:
            check_key(standby.node_public_key, f"{path}: node_public_key of {standby.node}")
    if not 1 <= config.threads <= MAX_THREADS:
        raise InputError(f"{path}: threads: expected 1 to {MAX_THREADS}, found {config.threads}")
    changes = {
        field: str(path.parent.absolute() / Path(value).expanduser())
        for field in ("bundle", "store", "secret_key", "allowed_signers", "root")
        if (value := getattr(config, field))
    }
    return msgspec.structs.replace(config, **changes)
