"""The one tree of errors that a user can meet, and what each of them means.

::

    DevitError            one line for the user, exit code 1
    ├── InputError        a file, image or option that the user gave is not usable
    ├── ManifestError     a file of the project's own formats breaks its format or its digest
    ├── WireError         bytes from the network break the message format
    ├── LinkError         a peer cannot be reached, refused us, or an address cannot be bound
    ├── ExportError       a model cannot be turned into a graph that keeps its meaning
    ├── EngineError       an engine cannot be built, found, loaded or run
    │   ├── NotBuiltError     the store holds none that this bundle and this machine can take
    │   └── DeviceLostError   the GPU's context is lost; only a new process helps, exit code 70
    ├── EnergyError       power samples do not carry the figure that was asked for
    ├── TrainError        training cannot start, resume or continue
    └── ConfigurationError    a service cannot start with its files as they are; no new start helps, exit code 78

A message says what was expected, what was found, and what to run next. Commands catch
:class:`DevitError` in one place and print it; every other exception is a bug and keeps its traceback.
"""


class DevitError(Exception):
    """Any failure that has a name. Its text is one line, written for the user."""


class InputError(DevitError):
    """A file, image or option that the user gave is not usable."""


class ManifestError(DevitError):
    """A file of the project's own formats breaks its format or its digest."""


class WireError(DevitError):
    """Bytes from the network break the message format."""

    def __init__(self, reason: str, text: str) -> None:
        """Keep ``reason``, a short fixed word to count by, beside the text."""
        super().__init__(text)
        self.reason = reason


class LinkError(DevitError):
    """A peer cannot be reached, refused us, or an address cannot be bound."""


class ExportError(DevitError):
    """A model cannot be turned into a graph that keeps its meaning."""


class EngineError(DevitError):
    """An engine cannot be built, found, loaded or run."""


class NotBuiltError(EngineError):
    """The store holds no engine that this bundle and this machine can take."""


class DeviceLostError(EngineError):
    """The GPU's context is lost; only a new process helps."""


class EnergyError(DevitError):
    """Power samples do not carry the figure that was asked for."""


class TrainError(DevitError):
    """Training cannot start, resume or continue."""


class ConfigurationError(DevitError):
    """A service cannot start with its files as they are; no new start helps."""
