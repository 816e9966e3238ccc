"""A device measured in several of its power modes."""
