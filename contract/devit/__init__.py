"""The client library: ask a cell of DeViT Edge from Python, as ``docs/python.md`` shows."""

from devit_contract.artefacts.fleet import Fleet, load_fleet
from devit_contract.artefacts.keys import KeyPair, check_key, load_keys, new_keys
from devit_contract.artefacts.preprocess import load_image
from devit_contract.choices import Policy
from devit_contract.errors import (
    AddressError,
    ConfigurationError,
    DeviceLostError,
    DevitError,
    EnergyError,
    EngineError,
    ExportError,
    FrameFailedError,
    InputError,
    LinkError,
    LostLinkError,
    ManifestError,
    NoAnswerError,
    NotBuiltError,
    PeerProtocolError,
    QuestionFailedError,
    RefusedError,
    SourceLostError,
    TrainError,
    WireError,
)
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client, Picture
from devit_contract.wire.codec import State
from devit_contract.wire.messages import (
    BaselineState,
    Description,
    DeviceTiming,
    Mark,
    PowerLine,
    SamplingCost,
    Telemetry,
)
from devit_contract.wire.status import DeviceStatus, NodeStatus, PromiseStatus
from devit_contract.wire.words import BaselineStep, DeviceState, MissingReason

__all__ = [
    "AddressError",
    "Answer",
    "BaselineState",
    "BaselineStep",
    "Client",
    "ConfigurationError",
    "Description",
    "DeviceLostError",
    "DeviceState",
    "DeviceStatus",
    "DeviceTiming",
    "DevitError",
    "EnergyError",
    "EngineError",
    "ExportError",
    "Fleet",
    "FrameFailedError",
    "InputError",
    "KeyPair",
    "LinkError",
    "LostLinkError",
    "ManifestError",
    "Mark",
    "MissingReason",
    "NoAnswerError",
    "NodeStatus",
    "NotBuiltError",
    "PeerProtocolError",
    "Picture",
    "Policy",
    "PowerLine",
    "PromiseStatus",
    "QuestionFailedError",
    "RefusedError",
    "SamplingCost",
    "SourceLostError",
    "State",
    "Telemetry",
    "TrainError",
    "WireError",
    "check_key",
    "load_fleet",
    "load_image",
    "load_keys",
    "new_keys",
]
