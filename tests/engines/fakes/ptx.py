"""Runs PTX as its manual defines it, all threads at once in NumPy; a name, type or register that is wrong raises.

Only the instructions of ``devit_engines/selftest/device/kernel.ptx``. NVIDIA's assembler accepts them too, see
``test_kernel.py``; what they do on a GPU, only a GPU shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
TYPES: dict[str, npt.DTypeLike] = {"u8": np.uint8, "u32": np.uint32, "u64": np.uint64, "f32": np.float32}
REGISTERS = {"pred": np.bool_, "b32": np.uint32, "f32": np.float32, "b64": np.uint64}


class Trap(Exception):
    """The kernel stopped itself."""


@dataclass(frozen=True)
class Entry:
    """One kernel."""

    parameters: dict[str, str]
    """Name to type, in their order."""
    body: tuple[str, ...]


@dataclass(frozen=True)
class Ptx:
    """A whole text."""

    version: tuple[int, int]
    target: int
    entries: dict[str, Entry]


def parse(text: str) -> Ptx:
    """Read a text; a ValueError says what is not PTX."""
    text = re.sub(r"//.*", "", text)
    head = re.match(r"\s*\.version (\d+)\.(\d+)\s*\.target sm_(\d+)\s*\.address_size 64\s", text)
    if head is None:
        raise ValueError("no head of PTX")
    rest, entries = text[head.end() :], {}
    while found := re.match(r"\s*\.visible \.entry (\w+)\((.*?)\)\s*\{(.*?)\}", rest, re.DOTALL):
        parameters = dict(
            re.fullmatch(r"\s*\.param \.(\w+) (\w+)\s*", each).groups()[::-1]  # type: ignore[union-attr,misc]
            for each in filter(str.strip, found[2].split(","))
        )
        entries[found[1]] = Entry(parameters, tuple(line.strip() for line in found[3].split(";") if line.strip()))
        rest = rest[found.end() :]
    if rest.strip():
        raise ValueError(f"not PTX: {rest.strip()[:40]!r}")
    return Ptx((int(head[1]), int(head[2])), int(head[3]), entries)


def run(entry: Entry, values: dict[str, Any], grid: int, block: int, view: Callable[[int, int], memoryview]) -> None:
    """Run a kernel of one dimension; ``view`` gives memory of the GPU by address and size in bytes.

    Raises:
        Trap: It stopped itself.
    """
    _Threads(entry, values, grid, block, view).run()


class _Threads:
    def __init__(
        self, entry: Entry, values: dict[str, Any], grid: int, block: int, view: Callable[[int, int], memoryview]
    ) -> None:
        self._entry, self._values, self._view = entry, values, view
        lanes = np.arange(grid * block, dtype=np.uint32)
        self._special = {"%ctaid.x": lanes // block, "%tid.x": lanes % block, "%ntid.x": np.full_like(lanes, block)}
        self._active = np.ones(grid * block, bool)
        self._registers: dict[str, Array] = {}

    def run(self) -> None:
        for line in self._entry.body:
            if line.startswith(".reg"):
                kind, _, names = line.removeprefix(".reg .").partition(" ")
                for name in names.split(","):
                    self._registers[name.strip()] = np.zeros(len(self._active), REGISTERS[kind])
                continue
            guard, _, instruction = line.partition(" ") if line.startswith("@") else ("", "", line)
            code, _, operands = instruction.partition(" ")
            where = self._active & (self._registers[guard[1:]] if guard else True)
            if code == "ret":
                self._active = self._active & ~where
            elif where.any():
                self._perform(code, [each.strip() for each in operands.split(",")], where)
            if not self._active.any():
                return
        raise ValueError("a kernel without ret at its end")

    def _perform(self, code: str, operands: list[str], where: Array) -> None:
        name, *kinds = code.split(".")
        read = self._operand
        if name == "trap":
            raise Trap
        if name == "st":
            self._store(operands, kinds[-1], where)
            return
        target = operands[0]
        if name == "ld":
            place = operands[1][1:-1]
            if kinds[0] == "param":
                if self._entry.parameters[place] != kinds[1]:
                    raise ValueError(f"{code} of a parameter .{self._entry.parameters[place]}")
                found: Any = np.full(len(where), self._values[place], TYPES[kinds[1]])
            else:
                found = self._load(place, kinds[1], where)
        elif code == "mov.u32":
            found = self._special[operands[1]]
        elif code == "mad.lo.u32":
            found = read(operands[1], "u32") * read(operands[2], "u32") + read(operands[3], "u32")
        elif code == "setp.ge.u32":
            found = read(operands[1], "u32") >= read(operands[2], "u32")
        elif code == "cvta.to.global.u64":
            found = read(operands[1], "u64")
        elif code in ("cvt.u64.u32", "cvt.rn.f32.u32"):
            found = read(operands[1], "u32").astype(TYPES[kinds[-2]])
        elif code == "add.u64":
            found = read(operands[1], "u64") + read(operands[2], "u64")
        elif code == "shl.b64":
            found = read(operands[1], "u64") << np.uint64(int(operands[2]))
        elif code == "fma.rn.f32":
            first, second, third = (read(each, "f32").astype(np.float64) for each in operands[1:])
            found = (first * second + third).astype(np.float32)
        else:
            raise ValueError(f"an instruction that is not played: {code}")
        register = self._registers[target]
        # ld.u8 widens into a register of 32 bits; nothing else changes its type.
        if found.dtype != register.dtype and code != "ld.global.u8":
            raise ValueError(f"{code} into {target}, a register of {register.dtype}")
        register[where] = found[where]

    def _operand(self, name: str, kind: str) -> Array:
        register = self._registers[name]
        if register.dtype != TYPES[kind]:
            raise ValueError(f"{name} read as .{kind}, a register of {register.dtype}")
        return register

    def _load(self, place: str, kind: str, where: Array) -> Array:
        memory, offsets = self._memory(place, kind, where)
        found = np.zeros(len(where), TYPES[kind])
        found[where] = memory[offsets]
        return found

    def _store(self, operands: list[str], kind: str, where: Array) -> None:
        memory, offsets = self._memory(operands[0][1:-1], kind, where)
        memory[offsets] = self._operand(operands[1], kind)[where]

    def _memory(self, place: str, kind: str, where: Array) -> tuple[Array, Array]:
        """Memory from the lowest to the highest address that a thread asks for, and where in it each does."""
        dtype = np.dtype(TYPES[kind])
        addresses = self._operand(place, "u64")[where]
        if (addresses % dtype.itemsize).any():
            raise ValueError(f"a .{kind} at an address that is not aligned")
        low, high = int(addresses.min()), int(addresses.max()) + dtype.itemsize
        memory = np.frombuffer(self._view(low, high - low), dtype)
        return memory, (addresses - np.uint64(low)) // np.uint64(dtype.itemsize)
