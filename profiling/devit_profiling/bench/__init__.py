"""One model on this device, measured for a plan."""
