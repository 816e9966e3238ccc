"""How good a finished models folder is: subsets of devices, classes, another cell, policies."""
