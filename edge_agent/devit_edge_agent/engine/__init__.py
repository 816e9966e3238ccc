"""What the agent runs: loaded, checked, swapped, and the baseline model beside it."""
