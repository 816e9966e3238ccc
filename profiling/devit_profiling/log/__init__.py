"""Logs of tegrastats, read and summed up without a run."""
