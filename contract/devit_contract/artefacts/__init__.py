"""What lies on disk and travels to devices: bundles, fleet and agent files, keys, signatures."""
