"""The process in which one way to CUDA is checked.

Its work is to ``describe`` the GPU, to ``check`` a way, to ``lose`` CUDA by it as an agent does, or to run a kernel
``again`` afterwards. It prints a :class:`devit_engines.selftest.device.result.Gpu` or a ``Row`` on a line of its own as
soon as it is known, or a ``Refused`` if there is nothing to check.
"""

from __future__ import annotations

import sys
from contextlib import closing

import msgspec

from devit_contract.choices import CudaChoice
from devit_contract.errors import DevitError
from devit_contract.service.terminal import run_program
from devit_engines.cuda.open import open_cuda
from devit_engines.selftest.device.checks import kernel_runs, lose_context, run_checks
from devit_engines.selftest.device.kernel import DeviceCalls
from devit_engines.selftest.device.result import Gpu, Refused, Row


def main() -> None:
    """Do what the two arguments say: the work, and a way to CUDA."""
    work, way = sys.argv[1], msgspec.convert(sys.argv[2], CudaChoice)
    if work == "lose":
        lose_context(way)
        return
    try:
        with closing(open_cuda(way)):
            gpu = DeviceCalls().describe()
        if work == "again":
            kernel_runs(way)
    except DevitError as err:
        is_absent = isinstance(err.__cause__, ModuleNotFoundError)
        _print(Row(way, "opens", "skipped", None, "not installed") if is_absent else Refused(str(err)))
        return
    if work == "check":
        run_checks(way, _print)
    else:
        _print(gpu)


def _print(line: Gpu | Row | Refused) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_program(main)
