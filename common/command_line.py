"""Commands of `scripts/` by fire, whose mistakes are told before anything is done, and in one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fire

from .errors import end_with_user_errors


def run_command(
    command: Callable[..., None] | Mapping[str, Callable[..., None]], words: Sequence[str] | None = None
) -> None:
    """Run a function from the command line; fire alone would report a mistyped option only after running it.

    Args:
        command: its arguments are those of the command line, its docstring the help; or several, by the first word.
        words: of the command line; None takes the program's own.
    """
    end_with_user_errors()
    if isinstance(command, Mapping):
        first, *words = (sys.argv[1:] if words is None else list(words)) or [""]
        if first not in command:
            sys.exit(f"expected one of {', '.join(command)} as the first word, found {first!r}")
        command = command[first]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @functools.wraps(command)
    def note(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    fire.Fire(note, command=None if words is None else list(words))
    for args, kwargs in calls:
        command(*map(_boolean, args), **{name: _boolean(value) for name, value in kwargs.items()})


def _boolean(value: Any) -> Any:
    """Fire reads `true` and `false` as text, which both would count as true."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
