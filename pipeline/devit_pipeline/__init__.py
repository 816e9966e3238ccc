"""The one command line, and the whole pipeline on one machine."""
