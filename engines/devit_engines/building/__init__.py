"""From a bundle to checked engines in the store of this device."""
