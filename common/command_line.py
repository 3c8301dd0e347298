"""Commands of `scripts/` by fire, whose mistakes are told before anything is done, and in one line."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

import fire
from fire.decorators import SetParseFn, SetParseFns
from fire.parser import DefaultParseValue

from .errors import SettingsError, end_with_user_errors
from .progress import stopwatch

LOG_FORMAT, LOG_TIME = "%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"  # as of the bundles' logging.conf
TOLD = timedelta(seconds=5)  # commands that take longer say how long they took
_TEXT, _TEXT_OR_NONE = (str, "str"), (str | None, "str | None")  # "…" where annotations are postponed

_logger = logging.getLogger(__name__)


def run_command(
    command: Callable[..., None] | Mapping[str, Callable[..., None]], words: Sequence[str] | None = None
) -> None:
    """Run a function from the command line; fire alone would report a mistyped option only after running it.

    An argument whose type is `str` is the text that was typed, of which fire alone makes what Python would: a folder
    `2024` a number, `a,b` a tuple, `[set1]` a list.

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

    noting = _with_readers(note, inspect.signature(command).parameters.values())
    fire.Fire(noting, command=None if words is None else list(words))
    logging.basicConfig(format=LOG_FORMAT, datefmt=LOG_TIME)
    logging.getLogger(__package__).setLevel(logging.INFO)
    for args, kwargs in calls:
        elapsed = stopwatch()
        command(*map(_boolean, args), **{name: _boolean(value) for name, value in kwargs.items()})
        if elapsed() > TOLD:
            folder = inspect.signature(command).bind(*args, **kwargs).arguments.get("output_dir")
            where = f" in {folder}" if folder else ""
            _logger.info("%s done%s, it took %s", command.__name__, where, elapsed())


def _with_readers(command: Callable[..., None], parameters: Collection[inspect.Parameter]) -> Callable[..., None]:
    """Tell fire which arguments are text."""
    readers = {
        each.name: functools.partial(_text, each) if each.annotation in _TEXT + _TEXT_OR_NONE else DefaultParseValue
        for each in parameters
    }
    several = [each.name for each in parameters if each.kind is each.VAR_POSITIONAL]
    return SetParseFns(**readers)(SetParseFn(readers[several[0]])(command) if several else command)


def _text(parameter: inspect.Parameter, typed: str) -> str | None:
    """Refuse what comes of an empty shell variable, or of an option without its value, which fire makes `True`."""
    if typed == "None" and parameter.annotation in _TEXT_OR_NONE:
        return None
    if typed in ("True", "False", "None") or (not typed and parameter.default != ""):
        raise SettingsError(f"{parameter.name}: expected a text, found {typed!r}; give it a value, or leave it out")
    return typed


def _boolean(value: Any) -> Any:
    """Fire reads `true` and `false` as text, which both would count as true."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
