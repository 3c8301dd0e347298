"""Experiments of many cells, each done once and kept as a file: a killed one goes on, and processes can share it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_path, read_json, write_json
from ..provenance import git_state, provenance

CELLS_FOLDER = "cells"
SETTINGS_NAME = "settings.json"
QUICK_WARNING = "**Made with --quick: no figure here means anything.**\n\n"
_logger = logging.getLogger(__name__)


class ExperimentError(UserError, ValueError):
    """The experiment cannot be run as asked: knobs that do not fit, or a folder with results of another one."""


class NoResultsError(UserError, ValueError):
    """A folder holds no cell of the experiment."""


class NamedCell(Protocol):
    """One trial of an experiment: a frozen dataclass of plain values."""

    @property
    def name(self) -> str:
        """Of its file."""


CellT = TypeVar("CellT", bound=NamedCell)


class Experiment(Generic[CellT]):
    """A grid of cells in a folder: every cell is done once, its result and commit kept as `cells/<name>.json`.

    Args:
        output_dir: of the results; one folder is one experiment.
        settings: what all cells share, in plain JSON types; a folder made with others is refused.
        do: cell to its result, in plain JSON types.
        describe: what a cell's file shall say beside it, such as the weights that it started from; a file that says
            otherwise is refused.

    Raises:
        ExperimentError: the folder has other settings.
    """

    def __init__(
        self,
        output_dir: str | Path,
        settings: Mapping[str, Any],
        do: Callable[[CellT], Mapping[str, Any]],
        describe: Callable[[CellT], Mapping[str, Any]] = lambda cell: {},
    ) -> None:
        self.output_dir = Path(output_dir)
        self.do = do
        self.describe = describe
        self.git = git_state()  # of the code that is in memory, whatever happens to the checkout
        settle(self.output_dir / SETTINGS_NAME, settings)

    def run(self, cells: Sequence[CellT], share: tuple[int, int] = (0, 1)) -> None:
        """Do the cells that are not done.

        Args:
            cells: in this order.
            share: (i, n): every n-th of them from the i-th on, so that n processes can share the work.
        """
        mine = list(cells)[share[0] :: share[1]]
        with tqdm(mine, desc="cells", unit="cell", dynamic_ncols=True) as bar:
            for cell in bar:
                bar.set_postfix_str(cell.name)
                if self.path(cell).is_file():
                    self._check_description(cell)
                else:
                    self._do(cell)

    def path(self, cell: CellT) -> Path:
        """Of a cell's result."""
        return self.output_dir / CELLS_FOLDER / f"{cell.name}.json"

    def _check_description(self, cell: CellT) -> None:
        found = read_json(self.path(cell))
        differing = [key for key, value in self.describe(cell).items() if found.get(key) != value]
        if differing:
            raise ExperimentError(
                f"{self.path(cell)} has another {', '.join(differing)} than now; give another output_dir, or remove "
                "the results made with it"
            )

    def _do(self, cell: CellT) -> None:
        result = dict(self.do(cell))
        about: Any = cell  # a dataclass, which a Protocol cannot say
        write_json(self.path(cell), {"cell": asdict(about), **self.describe(cell), "git": self.git, "result": result})
        _logger.info("%s: done", cell.name)


def read_cells(output_dir: str | Path, cell_type: Callable[..., CellT]) -> list[tuple[CellT, dict[str, Any]]]:
    """All results in a folder, sorted by name.

    Args:
        output_dir: of the experiment.
        cell_type: the dataclass of its cells.

    Raises:
        NoResultsError: there are none.
    """
    found = []
    for path in sorted((Path(output_dir) / CELLS_FOLDER).glob("*.json")):
        content = read_json(path)
        found.append((cell_type(**content["cell"]), content["result"]))
    if not found:
        raise NoResultsError(f"{output_dir}: found no results; expected {CELLS_FOLDER}/*.json, which the run writes")
    return found


def settle(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings where there are none, else compare.

    Raises:
        ExperimentError: names what differs.
    """
    wanted = json.loads(json.dumps(settings))
    if not path.is_file():
        write_json(path, wanted)
        return
    found = read_json(path)
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differing:
        pairs = ", ".join(f"{key} {found.get(key)!r}, now {wanted.get(key)!r}" for key in differing)
        raise ExperimentError(f"{path.parent} holds an experiment with {pairs}; give another output_dir")


def write_experiment_report(
    output_dir: str | Path,
    stem: str,
    tables: Callable[[Mapping[str, Any]], str],
    device: torch.device,
    **content: Any,
) -> dict[str, Any]:
    """Write `<stem>.json` and `<stem>.md`, each whole or not at all; return what the first holds.

    Args:
        output_dir: of the experiment.
        stem: of the files' names.
        tables: the report to the text; where the settings say `quick`, a warning goes before it.
        device: that the figures were made on.
        **content: of the report, beside the settings of the folder and the provenance.
    """
    folder = Path(output_dir)
    settings = read_json(folder / SETTINGS_NAME)
    report = {"settings": settings, "provenance": provenance(device), **content}
    write_json(folder / f"{stem}.json", report)
    with atomic_path(folder / f"{stem}.md") as temporary:
        temporary.write_text((QUICK_WARNING if settings.get("quick") else "") + tables(report), encoding="utf-8")
    return report
