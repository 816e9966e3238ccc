"""The application of every command line, so that all help looks alike: ``-h`` too, and nothing beside a flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
import typer.core

F = TypeVar("F", bound=Callable[..., Any])


class _PlainHelp:
    """Leaves out of a command's help that a flag is a ``<bool>``, and what completes words in a shell."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer keeps its context type private
        """List the parameters, to parse and to show them."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the command that this is mixed into
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
            param.hidden = getattr(param, "hidden", False) or param.name in ("install_completion", "show_completion")
        return params


class Command(_PlainHelp, typer.core.TyperCommand):
    """A command."""


class Group(_PlainHelp, typer.core.TyperGroup):
    """A command that has commands."""


class Application(typer.Typer):
    """An application of typer; ``settings`` are its own."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's
        """Make one without commands."""
        names = {"help_option_names": ["--help", "-h"]}
        fixed: dict[str, Any] = {
            "cls": Group,
            "context_settings": names,
            "add_completion": False,
            "pretty_exceptions_enable": False,
        }
        super().__init__(**{**fixed, **settings})

    def command(self, *args: Any, **settings: Any) -> Callable[[F], F]:  # noqa: ANN401 - typer's
        """Add the decorated function as a command."""
        return super().command(*args, **{"cls": Command, **settings})
