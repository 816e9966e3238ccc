"""A simulated Jetson, whose every line says SIMULATED."""
