"""SIMULATED nvv4l2decoder: the loader takes one element of a file."""

from gi.repository import Gst
from jetson import Decoder

__gstelementfactory__ = (
    "nvv4l2decoder",
    Gst.Rank.PRIMARY + 11,
    Decoder,
)  # above all decoders of software, as on a Jetson
