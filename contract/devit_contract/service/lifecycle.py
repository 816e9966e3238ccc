"""How a service starts, reloads and stops: configuration errors, SIGHUP, SIGTERM, Ctrl-C, a closed standard input."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from devit_contract.errors import ConfigurationError, InputError, ManifestError, NotBuiltError

_STDIN = 0


@contextmanager
def as_configured() -> Iterator[None]:
    """Turn an error of the service's files in this block into one that no restart would mend.

    Raises:
        ConfigurationError: Configuration, keys, bundle, signature or engine store are not usable. An address that
            cannot be bound, a lack of memory and the like are raised as they are: a service manager should try again.
    """
    try:
        yield
    except (InputError, ManifestError, NotBuiltError) as err:
        raise ConfigurationError(str(err)) from err


class StopSignal:
    """Catches requests to stop this process; call it to learn whether one has come."""

    def __init__(self, *, with_stdin: bool = False) -> None:
        """Take over SIGTERM and SIGINT.

        With ``with_stdin``, also stop when standard input is closed, as it is when the parent process dies in any way.
        """
        self._is_requested = False
        self._reader, self._writer = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._catch)
        if with_stdin:
            threading.Thread(target=self._watch_stdin, daemon=True).start()

    def __call__(self) -> bool:
        """Whether this process should stop."""
        return self._is_requested

    def wait(self) -> None:
        """Wait until this process should stop."""
        os.read(self._reader, 1)

    def _catch(self, _signal: int, _frame: FrameType | None) -> None:
        self._request()

    def _watch_stdin(self) -> None:
        # Not sys.stdin: a thread that waits inside it makes the interpreter abort when the process ends.
        while os.read(_STDIN, 4096):
            pass
        self._request()

    def _request(self) -> None:
        # A pipe: the interrupted code may hold the lock that another primitive would take here.
        self._is_requested = True
        os.write(self._writer, b".")


class ReloadSignal:
    """Catches SIGHUP; call it to learn, once for each signal, whether it has come."""

    def __init__(self) -> None:
        """Take over SIGHUP."""
        self._is_requested = False
        signal.signal(signal.SIGHUP, self._catch)

    def __call__(self) -> bool:
        """Whether it has come since the last call."""
        if not self._is_requested:
            return False
        self._is_requested = False
        return True

    def _catch(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_requested = True
