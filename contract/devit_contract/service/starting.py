"""How a service starts: a fault of its files ends it for good, whatever else fails may be gone at the next start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from devit_contract.errors import ConfigurationError, InputError, ManifestError, NotBuiltError


@contextmanager
def as_configured() -> Iterator[None]:
    """Do in this block what depends on files alone: configuration, keys, bundle, signature, engine store.

    Raises:
        ConfigurationError: One of them is not usable. An address that cannot be bound, a lack of memory and the like
            are raised as they are, since a service manager should try again.
    """
    try:
        yield
    except (InputError, ManifestError, NotBuiltError) as err:
        raise ConfigurationError(str(err)) from err
