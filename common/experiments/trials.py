"""Grids of trials, each done once and kept as a row of one CSV: a killed grid goes on, and processes can share it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import yaml
from filelock import FileLock
from scipy import stats

from ..errors import SettingsError
from ..evaluation.report import Row, mean_sd, read_rows, write_report, write_rows
from ..files import read_json, write_json
from ..progress import ProgressBar
from ..provenance import git_state, provenance

LOCK_NAME = ".trials.lock"
QUICK_WARNING = "**Made with --quick: no figure here means anything.**\n\n"

TrialT = TypeVar("TrialT", bound=Any)  # a dataclass, frozen
Trials = Sequence[tuple[TrialT, Row]]  # with what was measured


@dataclass
class Experiment(Generic[TrialT]):
    """A grid of trials in a folder: `<stem>.csv` gets a row of each: its settings, the code's commit, date, figures.

    A folder made with other settings, and rows that say otherwise than `describe`, are refused by a SettingsError.
    """

    output_dir: str | Path  # of the results; one folder is one experiment
    stem: str  # of the files' names
    settings: Mapping[str, Any]  # what all trials share, in plain JSON types
    do: Callable[[TrialT], Mapping[str, Any]]  # trial to its figures, numbers and texts, which may be nested
    # what a row shall say beside it, such as the weights that it started from
    describe: Callable[[TrialT], Mapping[str, Any]] = lambda trial: {}

    def __post_init__(self) -> None:
        self.path = Path(self.output_dir) / f"{self.stem}.csv"
        git = git_state()  # of the code that is in memory, whatever happens to the checkout
        self.commit = None if git is None else git["commit"] + ("-dirty" if git["is_dirty"] else "")
        check_or_write_settings(self.path.with_suffix(".json"), self.settings)

    def run(self, trials: Sequence[TrialT], share: tuple[int, int] = (0, 1)) -> None:
        """Do the trials that are not done, in this order; of share (i, n), for n processes, each n-th from the i-th."""
        mine, rows = list(trials)[share[0] :: share[1]], self._rows()
        with ProgressBar(mine, desc="trials", unit="trial") as bar:
            for trial in bar:
                bar.set_postfix_str(" ".join(map(str, asdict(trial).values())))
                done = next((row for row in rows if asdict(trial).items() <= row.items()), None)
                if done is None:
                    self._append(trial, dict(_flat(self.do(trial))))
                elif differing := [key for key, value in self.describe(trial).items() if done.get(key) != value]:
                    raise SettingsError(
                        f"{self.path} has another {', '.join(differing)} than now for {asdict(trial)}; give another "
                        "output_dir, or remove the rows made with it"
                    )

    def _rows(self) -> list[Row]:
        return read_rows(self.path) if self.path.is_file() else []

    def _append(self, trial: TrialT, figures: Row) -> None:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = {**asdict(trial), **self.describe(trial), "commit": self.commit, "date": date, **figures}
        with FileLock(self.path.with_name(LOCK_NAME)):
            write_rows(self.path, [*self._rows(), row])


def _flat(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested figures by dotted names; what is None is left out."""
    if isinstance(found, Mapping | list | tuple):
        for key, value in found.items() if isinstance(found, Mapping) else enumerate(found):
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif found is not None:
        yield name, found


def read_trials(path: str | Path, kind: Callable[..., TrialT]) -> list[tuple[TrialT, Row]]:
    """All rows of an experiment's CSV as trials, sorted by their settings, with what was measured, or SettingsError."""
    if not Path(path).is_file():
        raise SettingsError(f"{path}: found no results; expected the CSV that the run of the experiment writes")
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    rows = sorted(read_rows(path), key=lambda row: [row[name] for name in names])
    return [(kind(**{name: row[name] for name in names}), row) for row in rows]


def check_or_write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a report of nothing but its settings where there is none; others than its own are a SettingsError."""
    wanted = json.loads(json.dumps(settings))
    older = path.with_name("settings.json")  # of 0.1
    found = read_json(path)["settings"] if path.is_file() else read_json(older) if older.is_file() else wanted
    if differing := sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)):
        pairs = ", ".join(f"{key} {found.get(key)!r}, now {wanted.get(key)!r}" for key in differing)
        raise SettingsError(f"{path.parent} holds an experiment with {pairs}; give another output_dir")
    if not path.is_file():
        write_json(path, {"settings": wanted})


def write_experiment_report(
    output_dir: str | Path, stem: str, tables: Callable[[Row], str], device: torch.device | str, **content: Any
) -> Row:
    """Write `<stem>.json`, which holds the settings already, and `<stem>.md`; return what the first holds.

    Tables make the report to the text; where the settings say `quick`, a warning goes before it. The report holds
    settings, provenance and content.
    """
    settings = read_json(Path(output_dir) / f"{stem}.json")["settings"]
    report = {"settings": settings, "provenance": provenance(device), **content}
    text = (QUICK_WARNING if settings.get("quick") else "") + tables(report)
    write_report(output_dir, report, text, (f"{stem}.json", f"{stem}.md"))
    return report


# ---- which trials ----------------------------------------------------------------------------------------------------


def choose_trials(
    grid: Callable[..., Sequence[TrialT]],
    lists: Mapping[str, Any],
    allowed: Mapping[str, Sequence[str] | int],
    grids: str | Path | None = None,
    forced: Mapping[str, Any] | None = None,
) -> list[TrialT]:
    """The trials of all grids that a command asks for, each once, after a check of every list.

    Args:
        grid: makes the trials of one product of lists, which it takes as keywords.
        lists: what the command was given, by setting, such as {"sizes": [50, 200], "ratios": [1]}.
        allowed: of each setting the names that are known, or the least of its integers.
        grids: YAML file with several grids, for tables that are more than one product of lists: a list of mappings such
            as `- {sizes: [50], ratios: [1, 5]}`; what one leaves out is as in `lists`. None for one grid of `lists`.
        forced: what holds whatever the lists and the file say, as for a quick run.

    Raises:
        SettingsError: a file or a list that makes no sense.
    """
    found: dict[TrialT, None] = {}
    for given in [{}] if grids is None else _read_grids(Path(grids), lists):
        chosen = {**lists, **given, **(forced or {})}
        for name, known in allowed.items():
            _check_list(name, chosen[name], known)
        found |= dict.fromkeys(grid(**chosen))
    return list(found)


def _check_list(name: str, given: Any, known: Sequence[str] | int) -> None:
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    if isinstance(known, int):
        if not is_list or not all(type(each) is int and each >= known for each in given):
            raise SettingsError(f"--{name}: found {given!r}; expected a list of integers from {known} on: [50,100]")
    elif not is_list or not all(each in known for each in given):
        raise SettingsError(f"--{name}: found {given!r}; expected a list such as [{known[0]}], of {known}")


def _read_grids(path: Path, lists: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--grids: {path} cannot be read ({error})") from error
    if not isinstance(found, list) or not found or not all(isinstance(each, Mapping) for each in found):
        raise SettingsError(f"--grids: {path} holds {found!r}; expected a list of mappings of {', '.join(lists)}")
    if unknown := sorted({str(name) for each in found for name in each if name not in lists}):
        raise SettingsError(f"--grids: {path} has {', '.join(unknown)}; expected {', '.join(lists)}")
    return found


# ---- statistics over seeds -------------------------------------------------------------------------------------------


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Row:
    """Difference to a baseline over the seeds that both have, and whether chance alone could make it.

    Returns:
        `mean_sd` of the differences, and "p", two-sided, of the paired t-test; None for fewer than two seeds or
        differences without spread.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    found = mean_sd(differences)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if found["sd"] else math.nan
    return {**found, "p": p if math.isfinite(p) else None}


def by_seed(values: Mapping[int, float]) -> dict[str, float]:
    """The values of all seeds, in order, as JSON can hold them."""
    return {str(seed): value for seed, value in sorted(values.items())}


def grouped(trials: Trials[Any], names: Sequence[str], figure: str) -> dict[tuple[Any, ...], dict[int, float]]:
    """A figure by seed, for each combination of the trials' settings of these names; rows without it are left out."""
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    for trial, row in trials:
        if figure in row:
            found.setdefault(tuple(getattr(trial, name) for name in names), {})[trial.seed] = row[figure]
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values for their number."""
    order, found = np.argsort(p_values), np.array(p_values)
    found[order] = np.maximum.accumulate(np.arange(len(found), 0, -1) * found[order]).clip(max=1)
    return found.tolist()
