"""Who belongs to the cell while it runs: the fleet file, changed and taken, and the spares."""
