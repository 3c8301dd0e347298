"""Knobs of an experiment's command: lists that are checked before any work, and grids that a file lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .experiment import CellT, ExperimentError


def check_names(name: str, given: Any, known: Sequence[str]) -> None:
    """Refuse a knob that is not a list of known names.

    Raises:
        ExperimentError: says what was found.
    """
    unknown = [given] if isinstance(given, str) else [each for each in given if each not in known]
    if unknown:
        raise ExperimentError(f"--{name}: found {given!r}; expected a list such as [{known[0]}], of {', '.join(known)}")


def check_numbers(name: str, given: Any, least: int) -> None:
    """Refuse a knob that is not a list of integers of at least `least`.

    Raises:
        ExperimentError: says what was found.
    """
    if not isinstance(given, list | tuple) or not all(type(each) is int and each >= least for each in given):
        raise ExperimentError(
            f"--{name}: found {given!r}; expected a list of integers from {least} on, such as [50,100]"
        )


def read_grids(path: str | Path | None, knobs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The grids that a YAML file lists, for tables that are more than one product of lists.

    Args:
        path: of a list of mappings, such as `- {sizes: [50], ratios: [1, 5]}`; None for one grid of the knobs alone.
        knobs: what a grid may say, with what holds where it does not.

    Returns:
        Of each grid all knobs.

    Raises:
        ExperimentError: the file is not there or holds something else.
    """
    if path is None:
        return [dict(knobs)]
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"--grids: {path} cannot be read ({error})") from error
    if not isinstance(found, list) or not found or not all(isinstance(each, Mapping) for each in found):
        raise ExperimentError(f"--grids: {path} holds {found!r}; expected a list of mappings of {', '.join(knobs)}")
    if unknown := sorted({str(name) for each in found for name in each if name not in knobs}):
        raise ExperimentError(f"--grids: {path} has {', '.join(unknown)}; expected {', '.join(knobs)}")
    return [{**knobs, **each} for each in found]


def chosen_cells(
    path: str | Path | None,
    knobs: Mapping[str, Any],
    grid: Callable[..., Sequence[CellT]],
    names: Mapping[str, Sequence[str]],
    numbers: Mapping[str, int],
    forced: Mapping[str, Any],
) -> list[CellT]:
    """The cells of all grids that a command asks for, each once, after a check of every list.

    Args:
        path: see `read_grids`.
        knobs: see `read_grids`.
        grid: a grid's knobs to its cells.
        names: knobs that are lists of names, and the names that are known.
        numbers: knobs that are lists of integers, and the least of them.
        forced: what holds whatever the knobs and the file say, as for a quick run.

    Raises:
        ExperimentError: a file or a list that makes no sense.
    """
    found: dict[CellT, None] = {}
    for lists in read_grids(path, knobs):
        lists |= forced
        for name, known in names.items():
            check_names(name, lists[name], known)
        for name, least in numbers.items():
            check_numbers(name, lists[name], least)
        found |= dict.fromkeys(grid(**lists))
    return list(found)
