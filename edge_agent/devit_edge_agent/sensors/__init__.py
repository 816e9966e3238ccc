"""What the agent reads of its board: power samples and over-current events."""
