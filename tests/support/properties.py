"""How many examples Hypothesis tries: few in ``make test``, many in ``make test-nightly``."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

_LEAST = 5


def register() -> None:
    """Make the profiles known; ``--hypothesis-profile thorough`` chooses the other one."""
    settings.register_profile("quick", max_examples=20, deadline=None)
    settings.register_profile("thorough", max_examples=100, deadline=None)
    settings.load_profile("quick")


def examples(factor: float, **more: Any) -> settings:  # noqa: ANN401 - passed on as it is
    """Try this many times the profile's examples; a test that is cheap or dear says so by its factor."""
    assert settings.default is not None
    return settings(max_examples=max(_LEAST, round(factor * settings.default.max_examples)), **more)
