"""SIMULATED nvvidconv: the loader takes one element of a file."""

from gi.repository import Gst
from jetson import Converter

__gstelementfactory__ = ("nvvidconv", Gst.Rank.NONE, Converter)  # named by pipelines alone
