"""One engine run back to back in a process of its own."""
