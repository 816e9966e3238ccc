"""The one tree of errors that a user can meet, and what each of them means.

A message says what is wrong, and what to run next. Commands catch :class:`DevitError` in one place and print it; every
other exception is a bug and keeps its traceback.
"""

from typing import Literal

MessageFault = Literal["size", "magic", "kind", "dtype", "dims", "state", "crc", "body"]
"""What may be wrong with any message."""
DeviceFault = Literal[MessageFault, "frames", "boot", "run", "reason", "hello"]
"""What a node may find wrong with a message of a device."""
ClientFault = Literal[MessageFault, "shape", "mask", "picture", "policy", "connections", "views"]
"""What a node may find wrong with a message of a client."""
AgentFault = Literal[MessageFault, "question", "run", "engine"]
"""What an agent may find wrong with a message of its node."""
PairingFault = Literal["size", "magic", "version", "kind", "body", "code", "order"]
"""What ``devit pair`` and ``devit join`` may find wrong with each other's messages."""


class DevitError(Exception):
    """Any failure that has a name, exit code 1. Its text is one line, written for the user."""


class InputError(DevitError):
    """A file, image or option that the user gave is not usable."""


class ManifestError(DevitError):
    """A file of the project's own formats breaks its format or its digest."""


class WireError(DevitError):
    """Bytes from the network break the message format."""

    def __init__(self, reason: DeviceFault | ClientFault | AgentFault | PairingFault, text: str) -> None:
        """Keep ``reason``, the word to count by, beside the text."""
        super().__init__(text)
        self.reason = reason


class LinkError(DevitError):
    """Something failed between client, node and agent; always one of the classes below."""


class AddressError(LinkError):
    """An address cannot be bound or connected to, e.g. as it is in use."""


class RefusedError(LinkError):
    """The node refuses this client or device, whatever it sends."""


class NoAnswerError(LinkError):
    """The peer did not answer in time: it may if you try again."""


class LostLinkError(LinkError):
    """The link ended before the answer came."""


class QuestionFailedError(LinkError):
    """The node or an agent could not do what it was asked to."""


class FrameFailedError(LinkError):
    """Too few devices answered, so that an image has no answer."""


class PeerProtocolError(LinkError):
    """The peer speaks another version of the protocol, or none."""


class ExportError(DevitError):
    """A model cannot be turned into a graph that keeps its meaning."""


class EngineError(DevitError):
    """An engine cannot be built, found, loaded or run."""


class NotBuiltError(EngineError):
    """The store holds no engine that this bundle and this machine can take."""


class DeviceLostError(EngineError):
    """The GPU's context is lost; only a new process helps, exit code 70."""


class SourceLostError(DevitError):
    """A camera is lost to this process; only a new one can reach it, exit code 70."""


class EnergyError(DevitError):
    """Power samples do not carry the figure that was asked for."""


class TrainError(DevitError):
    """Training cannot start, resume or continue."""


class ConfigurationError(DevitError):
    """A service cannot start with its files as they are; a restart does not help, exit code 78."""
