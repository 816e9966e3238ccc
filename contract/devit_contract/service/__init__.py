"""How a service lives: start, stop, log, health, and what it shows on a terminal."""
