"""SIMULATED nvarguscamerasrc: the loader takes one element of a file."""

from gi.repository import Gst
from jetson import Camera

__gstelementfactory__ = ("nvarguscamerasrc", Gst.Rank.NONE, Camera)  # named by pipelines alone
