"""What a node saw and did, on its way to a file, and run through a node again."""
