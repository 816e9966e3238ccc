"""Measuring: load on a cell or a local engine, with power sampled meanwhile."""
