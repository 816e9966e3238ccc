"""From raw data to figures: energy, latency, intervals, comparisons."""
