"""Which mode of a fleet meets a goal, by simulation on measured profiles."""
