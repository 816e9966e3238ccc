"""How many examples Hypothesis tries: few in ``make test``, many in ``make test-nightly``."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

_LEAST = 5


def register() -> None:
    """Make the profiles known; ``--hypothesis-profile thorough`` chooses the other one.

    Neither judges time: on a busy machine an example takes a hundred times as long as on a quiet one.
    """
    timeless = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("quick", timeless, max_examples=20)
    settings.register_profile("thorough", timeless, max_examples=100)
    settings.load_profile("quick")


def examples(factor: float, **more: Any) -> settings:  # noqa: ANN401 - passed on as it is
    """Try this many times the profile's examples; a test that is cheap or dear says so by its factor."""
    assert settings.default is not None
    return settings(max_examples=max(_LEAST, round(factor * settings.default.max_examples)), **more)
