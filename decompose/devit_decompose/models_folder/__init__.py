"""The folder of finished models: its files, how good they are, and how they are written."""
