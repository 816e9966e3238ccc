"""What another JetPack would break on this machine, and which engines would have to be built again, for how long."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from devit_contract.errors import InputError
from devit_contract.machine import board_compatible
from devit_engines.board import NO_GPU
from devit_engines.building.store import EngineRecord
from devit_engines.doctor.finding import Finding, Machine, major, numbers
from devit_engines.doctor.jetpack import JETPACKS, TENSORRT_11, JetPack, release_boards, takes_tensorrt_11

_NO_DLA_COMPILER = 39
"""First L4T whose Orins lack libnvdla_compiler.so: wyoming-whisper-trt issue 1038, frigate pull request 23582."""


@dataclass(frozen=True)
class OldEngine:
    """An engine of the store, and what becomes of it."""

    title: str
    variant: str
    built_by: str
    is_built_again: bool
    why: str
    build_s: float
    """How long its build took here, without the accuracy check and the variants that failed it."""


@dataclass(frozen=True)
class Upgrade:
    """From the release that the machine has to another one."""

    now: str
    """L4T release."""
    to: str
    """JetPack version."""
    findings: tuple[Finding, ...]
    engines: tuple[OldEngine, ...]
    build_s: float
    """For all engines that are built again, as long as they took here."""


def plan_upgrade(machine: Machine, version: str, records: Sequence[EngineRecord]) -> Upgrade:
    """Say what changes with JetPack ``version``, such as ``7.2.2``; ``records`` are the store's.

    Raises:
        InputError: The table has no such release, or the machine is no Jetson.
    """
    l4t, to = machine.board.l4t, find_release(version)
    if l4t is None:
        raise InputError("/etc/nv_tegra_release: expected the release of a Jetson, found none: run this on a Jetson")
    takes_11 = takes_tensorrt_11(to.l4t, machine.board.name, board_compatible(machine.root))
    engines = tuple(_engines(records, to, takes_11))
    return Upgrade(
        now=l4t,
        to=to.version,
        findings=tuple(_findings(machine, l4t, to, takes_11)),
        engines=engines,
        build_s=round(sum(engine.build_s for engine in engines if engine.is_built_again), 1),
    )


def find_release(version: str) -> JetPack:
    """Find a JetPack by the number that NVIDIA gives it; of several releases with that number the newest.

    Raises:
        InputError: The table has none; the text names those that it has.
    """
    known = {row.version: row for row in _numbered()}
    if version not in known:
        raise InputError(f"JetPack {version}: expected one of {', '.join(known)}: give one of them to --upgrade-to")
    return known[version]


def _numbered() -> list[JetPack]:
    """List the rows that stand for one JetPack, and of several releases of it the newest."""
    return list({row.version: row for row in JETPACKS if re.fullmatch(r"\d+(\.\d+)+", row.version)}.values())


def _findings(machine: Machine, l4t: str, to: JetPack, takes_11: bool) -> Iterator[Finding]:
    yield _release(to)
    yield _board(machine, to)
    yield _tensorrt(machine, to)
    if takes_11:
        # TensorRT 11.0 release notes; Python 3.9 is gone too, below what devit needs.
        text = f"{TENSORRT_11} can be installed: without weak typing, implicit INT8 and IPluginV2"
        cure = "change your own scripts first, e.g. trtexec --fp16; devit builds all engines again, strongly typed"
        yield Finding("TensorRT 11", text, "warning", cure)
    yield _python(machine, to)
    yield _cuda(machine, to)
    yield from _containers(machine, l4t, to)
    if major(l4t) != major(to.l4t):
        text = f"L4T {l4t} to {to.l4t}: a new image erases keys, /etc/devit, bundles and the store"
        yield Finding("disk", text, "warning", "copy them to another machine first")


def _release(to: JetPack) -> Finding:
    doubt = "" if to.is_confirmed else ", unconfirmed"
    text = f"{to.version} (L4T {to.l4t}), brings CUDA {to.cuda}, TensorRT {to.tensorrt}{doubt}"
    if to.is_supported:
        return Finding("JetPack", text)
    return Finding("JetPack", text, "refused", "choose 6.0 or later")


def _board(machine: Machine, to: JetPack) -> Finding:
    gpu, supported = machine.board.compute_capability, release_boards(to.l4t)
    if gpu == NO_GPU:
        text = f"{machine.board.name}, whose GPU is unknown"
        return Finding(
            "board", text, "warning", f"see in NVIDIA's release notes of {to.version} whether it is supported"
        )
    text = f"{machine.board.name}, {gpu}"
    if gpu in supported:
        return Finding("board", text)
    fitting = [row.version for row in _numbered() if row.is_supported and gpu in release_boards(row.l4t)]
    cure = f"choose one of {', '.join(fitting)}" if fitting else "take an Orin or a Thor"
    return Finding("board", f"{text}, for which JetPack {to.version} is not made", "refused", cure)


def _tensorrt(machine: Machine, to: JetPack) -> Finding:
    now = machine.jetpack
    text = f"{'unknown' if now is None else now.tensorrt} to {to.tensorrt}"
    if now is not None and now.tensorrt == to.tensorrt:
        return Finding("TensorRT", f"{to.tensorrt} as now")
    cure = "run devit build for each bundle after it: a TensorRT engine fits only the release that built it"
    if now is not None and major(now.tensorrt) < major(to.tensorrt):
        cure += "; change your own scripts that call TensorRT, as its API changes"
    return Finding("TensorRT", text, "warning", cure)


def _python(machine: Machine, to: JetPack) -> Finding:
    now = machine.jetpack
    if now is not None and now.python == to.python:
        return Finding("Python", f"{to.python} as now")
    text = f"{'unknown' if now is None else now.python} to {to.python}"
    return Finding("Python", text, "warning", "remove .venv after it: engines/build-engines.sh makes another one")


def _cuda(machine: Machine, to: JetPack) -> Finding:
    now = machine.jetpack
    if now is not None and now.cuda == to.cuda:
        return Finding("CUDA", f"{to.cuda} as now")
    text = f"{'unknown' if now is None else now.cuda} to {to.cuda}"
    if now is not None and major(now.cuda) == major(to.cuda):
        return Finding("CUDA", text)
    extra = f"'.[jetson{major(to.version)}]'"
    return Finding("CUDA", text, "warning", f"run pip install {extra} after it, if you use --cuda cuda-bindings")


def _containers(machine: Machine, l4t: str, to: JetPack) -> Iterator[Finding]:
    build = f"build them again with --build-arg JETPACK={major(to.version)}"
    if major(l4t) < _NO_DLA_COMPILER <= major(to.l4t) and machine.board.compute_capability == "sm_87":
        text = "images of now fail: their TensorRT needs libnvdla_compiler.so, which the new host lacks"
        yield Finding("containers", text, "warning", build)
    elif machine.jetpack is not None and major(to.cuda) < major(machine.jetpack.cuda):
        yield Finding(
            "containers", f"images of now fail: their CUDA is newer than {to.cuda} (error 35)", "warning", build
        )


def _engines(records: Sequence[EngineRecord], to: JetPack, takes_11: bool) -> Iterator[OldEngine]:
    """Judge the newest engine of each model; an older one of the same is left by an earlier upgrade."""
    newest = {(record.title, record.key.backend): record for record in sorted(records, key=lambda each: each.created)}
    for _, record in sorted(newest.items()):
        key = record.key
        is_built_again, why = _fate(record, to, takes_11)
        built_by = f"{key.backend} {key.backend_version}"
        yield OldEngine(record.title, key.variant, built_by, is_built_again, why, record.build_s)


def _fate(record: EngineRecord, to: JetPack, takes_11: bool) -> tuple[bool, str]:
    key = record.key
    if key.backend != "tensorrt" or (takes_11 and major(key.backend_version) >= major(TENSORRT_11)):
        return False, f"stays, with {key.backend_version} installed again"
    if numbers(key.backend_version)[:2] != numbers(to.tensorrt)[:2]:
        return True, f"TensorRT {to.tensorrt} does not load it"
    if record.l4t is None or not f"{record.l4t}.".startswith(f"{to.l4t}."):
        return False, f"stays if TensorRT stays {key.backend_version}; its latency is of L4T {record.l4t or 'unknown'}"
    return False, "stays"
