"""Recipes of trainings: which stages a chain has, and what each of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Stage:
    """One step of a chain.

    Attributes:
        name: of the stage.
        commands: one after the other: `bundle`, `configs`, `run_id` and `settings` of a workflow, or `script` and
            `settings` of a script.
        steps: optimiser steps of its training; None where it trains nothing.
        weights: the file that it makes, in its run folder; None for none.
        ships: bundle to path in it of these weights.
        defaults: keys of its override files that describe the weights, which become the defaults of the bundle that
            ships them.
        choose: how to choose between the averages of two lengths: settings of score_weights.py, and `by`, the column
            whose least value wins; None takes the first.
        labelled: its workflows take labelled images alone, and of these the rows that the chain's `where` says.
    """

    name: str
    commands: Sequence[Mapping[str, Any]] = ()
    steps: int | None = None
    weights: str | None = None
    ships: Mapping[str, str] = field(default_factory=dict)
    defaults: Sequence[str] = ()
    choose: Mapping[str, Any] | None = None
    labelled: bool = False


def read_recipe(path: Path) -> dict[str, Stage]:
    """The stages of a recipe, by name; YAML with `stages`, see `scripts/recipes`.

    A recipe with `base`, another one beside it, changes keys of the stages of that one; null takes a key back.
    """
    chain = [yaml.safe_load(path.read_text(encoding="utf-8"))]
    while "base" in chain[-1]:
        path = path.with_name(chain[-1]["base"])
        chain.append(yaml.safe_load(path.read_text(encoding="utf-8")))
    stages = chain.pop()["stages"]
    for change in reversed(chain):
        stages = {name: {**keys, **change["stages"].get(name, {})} for name, keys in stages.items()}
    return {
        name: Stage(name, **{key: value for key, value in keys.items() if value is not None})
        for name, keys in stages.items()
    }
