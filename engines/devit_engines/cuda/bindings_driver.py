"""The driver API by NVIDIA's package cuda-bindings, of CUDA 12 or 13."""

from __future__ import annotations

import importlib

from devit_contract.errors import EngineError

_INSTALL = (
    "run pip install 'cuda-python==12.6.*' on JetPack 6, pip install 'cuda-bindings==13.*' on JetPack 7, "
    "or choose ctypes"
)
# The package has the name of cuda.h, which stands for WithFlags since CUDA 12; in 11 both names were there, and the
# short one took a log buffer.
_OLD_NAMES = {"cuGraphInstantiateWithFlags": "cuGraphInstantiate"}


class BindingsDriver:
    """``cuda.bindings.driver``; the same functions and numbers in 12.6, 12.8, 12.9 and 13."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        """Import the package, which finds the driver's library when the first function is called."""
        try:
            self._module = importlib.import_module("cuda.bindings.driver")
        except ImportError as err:
            raise EngineError(f"the package cuda-bindings is not installed ({err}): {_INSTALL}") from err

    def call(self, function: str, *arguments: int) -> tuple[int, ...]:
        module = self._module
        perform = getattr(module, function, None) or getattr(module, _OLD_NAMES.get(function, function), None)
        if perform is None:
            raise EngineError(f"cuda-bindings {self._version()} has no {function}: {_INSTALL}")
        if function == "cuStreamBeginCapture":
            stream, mode = arguments
            arguments = stream, module.CUstreamCaptureMode(mode)
        try:
            code, *outputs = perform(*arguments)
        except ValueError as err:
            # "35 is not a valid CUresult": the driver gave a number that this package has no name for.
            number = str(err).partition(" ")[0]
            if not number.isdecimal():
                raise
            return (int(number),)
        except RuntimeError as err:
            raise EngineError(
                f"cuda-bindings {self._version()}: the driver has no {function} ({err}): {_INSTALL}"
            ) from err
        return int(code), *(int(output) for output in outputs if output is not None)

    def error_name(self, code: int) -> str:
        """As the enumeration names it: cuGetErrorName takes only its members."""
        try:
            return str(self._module.CUresult(code).name)
        except ValueError:
            return "an error that this cuda-bindings does not know"

    def _version(self) -> str:
        """CUDA that the package was made for."""
        major, rest = divmod(int(self._module.CUDA_VERSION), 1000)
        return f"{major}.{rest // 10}"
