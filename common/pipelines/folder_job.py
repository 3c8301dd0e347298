"""Many inputs to many results in one folder: what every such command does alike, whatever it makes of an input.

One process at a time works in a folder, or those of one torchrun job, which share the batches. Each finished item is
noted in `job_items.jsonl` before the next begins, so a run that was killed goes on where it stopped, to the same files.
An item that fails stops no other; the run fails at its end and names it. `job.json` records the settings and every run;
by it, data lists leave the folder out.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..checks import check_apart, check_numbers
from ..data.datalist_sources import name_in
from ..data.dataset import RadiographDataset
from ..data.readability import fail_if_skipped
from ..distributed import is_rank_zero, of_all, share, wait_for_all
from ..errors import UNWRITABLE, RunError, UserError
from ..files import JOB_RECORD, file_stamp, locked_folder, result_names
from ..fingerprint import network_sha256
from ..io.contact_sheet import save_contact_sheet
from ..io.scaling import reading_settings
from ..progress import ProgressBar, stopwatch
from .job_log import Entry, Item, JobLog, Row

SHEET_NAME = "contact_sheet.png"
TABLE_SECONDS = 60.0  # between two writings of the tables
ROWS_PER_SECOND = 4000  # of such a pause, where it is longer: else writing all rows again and again would count
FEW_ON_SHEET = 4  # items
NAMED_FAILURES = 5  # in the message at the end; job.json has all

_logger = logging.getLogger(__name__)


class FolderJob:
    """Makes the results of many items in one folder; a subclass says which items, and how.

    Args:
        output_dir: of all files.
        settings: what all results share, in plain JSON types.
        batch_size: items at a time. A batch is computed whole even where some of it is there, so that a resumed run
            computes what an uninterrupted one does.
        sheet_images: on the contact sheet at most.

    Raises:
        SettingsError: a batch of less than one, or less than no images on the sheet.
    """

    verb, unit = "made", "image"
    keeps_folder = False  # refuse other settings than those of the folder, rather than make all again
    keeps_rows = False  # tables also list what earlier runs made of other items

    def __init__(
        self, output_dir: str | Path, settings: Mapping[str, Any], batch_size: int = 1, sheet_images: int = 0
    ) -> None:
        check_numbers(batch_size=batch_size, sheet_images=sheet_images)
        self.output_dir = Path(output_dir)
        self.settings = json.loads(json.dumps({**settings, **reading_settings()}))
        self.batch_size = batch_size
        self.sheet_images = sheet_images

    def items(self) -> Sequence[Item]:
        """All inputs, in the order of the tables."""
        raise NotImplementedError

    def result(self, item: Item) -> str:
        """The file of the folder without which an item is not done."""
        raise NotImplementedError

    def compute(self, items: Sequence[Item]) -> Sequence[Any]:
        """What `write` is to write of each; a UserError, an OSError or a ValueError fails the items."""
        raise NotImplementedError

    def write(self, item: Item, output: Any) -> Row:
        """Write an item's files; its row, with `problem` in it where not all could be written."""
        raise NotImplementedError

    def tabulate(self, rows: Sequence[Row]) -> None:
        """Write tables, again and again."""

    def finish(self, items: Sequence[Item], rows: Sequence[Row]) -> str:
        """Show results of the items that are done side by side; say so for the closing line."""
        return ""

    def run(self) -> list[Row]:
        """Make what is not there yet; the rows of all that is.

        Raises:
            RunError: some items failed, the others are done; or the folder is in use, gone, or cannot be written to.
            CheckpointMismatchError: the folder holds results of other settings, and this job keeps them.
            DatasetError: inputs were left out as unreadable, the others are done.
        """
        elapsed = stopwatch()
        items = self.items()  # first: it may refuse, and then nothing is left behind
        failures: dict[str, str] = {}
        try:
            with locked_folder(self.output_dir) if is_rank_zero() else nullcontext():
                log, todo = self._begin(items)
                self._make(items, todo, log, failures)
                failures = {name: reason for part in of_all(failures) for name, reason in part.items()}
                if not is_rank_zero():
                    return []
                log.take_shares()
                rows = self._rows(items, log)
                self.tabulate(rows)
                done = [item for item in items if item.name in log.entries]
                closing = self.finish(done, rows)
                log.close({"done": len(done), "failures": failures, "seconds": int(elapsed().total_seconds())})
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise RunError(
                f"{self.output_dir} cannot be written to ({error.strerror}: {error.filename}); what was finished is "
                "there, and the same command goes on from it"
            ) from error
        count, before = f"{len(done)} of {len(items)} {self.unit}s", len(items) - len(todo)
        there = f" ({before} of them before)" if before else ""
        _logger.info("%s %s%s in %s: %s%s", count, self.verb, there, elapsed(), self.output_dir, closing)
        if failures:
            named = "; ".join(f"{name}: {reason}" for name, reason in [*failures.items()][:NAMED_FAILURES])
            more = f"; for all {len(failures)} see {JOB_RECORD}" if len(failures) > NAMED_FAILURES else ""
            raise RunError(f"{count} are {self.verb}, in {self.output_dir}; failed: {named}{more}")
        fail_if_skipped(self.output_dir)
        return rows

    def _begin(self, items: Sequence[Item]) -> tuple[JobLog, set[str]]:
        """The log, and names of what is to do: the same in all processes, for none begins before all have looked."""
        if not is_rank_zero():
            wait_for_all()  # until the first has made the folder what it should be
        log = JobLog(self.output_dir, self.settings, self.keeps_folder)
        todo = {item.name for item in items if not log.has(item, self.output_dir / self.result(item))}
        if is_rank_zero():
            wait_for_all()
        wait_for_all()
        return log, todo

    def _make(self, items: Sequence[Item], todo: set[str], log: JobLog, failures: dict[str, str]) -> None:
        """Make and note this process's share of what is to do."""
        batches = share([items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)])
        total = sum(map(len, batches))
        initial = sum(item.name not in todo for batch in batches for item in batch)
        tabulated, pause = time.monotonic(), max(TABLE_SECONDS, len(items) / ROWS_PER_SECOND)
        try:
            with ProgressBar(total=total, initial=initial, desc=self.verb, unit=self.unit) as bar:
                for batch in batches:
                    wanted = {item.name for item in batch} & todo
                    if not wanted:
                        continue
                    pairs = [pair for pair in self._outputs(batch, failures) if pair[0].name in wanted]
                    log.append([entry for pair in pairs if (entry := self._entry(*pair, failures))])
                    bar.update(len(wanted))
                    if time.monotonic() - tabulated > pause and is_rank_zero():
                        self.tabulate(self._rows(items, log))
                        tabulated = time.monotonic()
        except BaseException:
            with suppress(OSError):  # of the disk that may be the reason
                if is_rank_zero():
                    self.tabulate(self._rows(items, log))
            raise

    def _outputs(self, batch: Sequence[Item], failures: dict[str, str]) -> list[tuple[Item, Any]]:
        """What is computed of a batch; one by one where it fails, so that it is known which item it was."""
        try:
            return list(zip(batch, self.compute(batch), strict=True))
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"{len(batch)} {self.unit}s at a time need too much memory; give a smaller batch_size"
            ) from error
        except (UserError, OSError, ValueError) as error:
            if len(batch) > 1:
                return [pair for item in batch for pair in self._outputs([item], failures)]
            _note(failures, batch[0], error)
            return []

    def _entry(self, item: Item, output: Any, failures: dict[str, str]) -> Entry | None:
        stamp = file_stamp(item.source)
        try:
            row = self.write(item, output)
        except (UserError, ValueError) as error:
            _note(failures, item, error)
            return None
        if problem := row.pop("problem", None):
            _note(failures, item, problem)
        return Entry(item.name, item.source, None if problem else stamp, row)

    def _rows(self, items: Sequence[Item], log: JobLog) -> list[Row]:
        mine = {item.name: log.entries[item.name].row for item in items if item.name in log.entries}
        others = {name: entry.row for name, entry in log.entries.items() if self.keeps_rows and name not in mine}
        return [*mine.values(), *others.values()]


class FileJob(FolderJob):
    """What a pipeline makes of the files of a data set; arguments that are not named here as of `FolderJob`.

    Args:
        pipeline: with a `network`, `amp`, and `typical`: what its training images were like.
        dataset: lists the files.
        dataset_dir: names of results keep the path relative to it.
        settings: besides those of the pipeline.

    Raises:
        SettingsError: results would lie among the inputs, where the next run would take them for inputs.
    """

    sheet_titles: Sequence[str] = ()
    sheet_footer: Callable[[int], Image.Image] | None = None
    items_per_row = 1  # of the sheet, where there are more than `FEW_ON_SHEET`

    def __init__(
        self,
        pipeline: Any,
        dataset: RadiographDataset,
        dataset_dir: str,
        output_dir: str,
        settings: Mapping[str, Any],
        batch_size: int,
        sheet_images: int,
    ) -> None:
        check_apart("output_dir", output_dir, dataset_dir)
        typical = None if pipeline.typical is None else network_sha256(pipeline.typical)
        made = {"weights_sha256": network_sha256(pipeline.network), "amp": pipeline.amp, "typical_sha256": typical}
        super().__init__(output_dir, {**settings, **made}, batch_size, sheet_images)
        self.pipeline, self.dataset_dir = pipeline, dataset_dir
        self.paths = [item["image"] for item in dataset.data]

    def items(self) -> list[Item]:
        """The files, named after their place in the data set."""
        return [Item(*named) for named in zip(result_names(self.paths, self.dataset_dir), self.paths, strict=True)]

    def pictures(self, item: Item, row: Row) -> tuple[list[Tensor], str]:
        """What the contact sheet shows of an item that is done, and its caption."""
        raise NotImplementedError

    def unlikeness(self, pixels: Tensor) -> float | str:
        """Cell of a table: above 1 for an image [1, H, W] that is unlike those of the training; "" if not known."""
        return "" if self.pipeline.typical is None else round(self.pipeline.typical(pixels), 2)

    def finish(self, items: Sequence[Item], rows: Sequence[Row]) -> str:
        """Warn of images that are unlike those of the training, and draw the contact sheet of the first."""
        pairs = list(zip(items, rows, strict=True))
        root = Path(os.path.abspath(self.dataset_dir))
        warn_of_unlike({name_in(root, os.path.abspath(item.source)): row.get("unlikeness") for item, row in pairs})
        pairs = pairs[: self.sheet_images]
        shown = [self.pictures(item, row) for item, row in pairs]
        if not shown:
            return ""
        width = self.items_per_row if len(shown) > FEW_ON_SHEET else 1
        groups = [shown[start : start + width] for start in range(0, len(shown), width)]
        pictures = [[picture for some, _ in group for picture in some] for group in groups]
        captions = [[caption for _, caption in group] for group in groups]
        titles, path = [*self.sheet_titles] * width, self.output_dir / SHEET_NAME
        save_contact_sheet(pictures, path, titles, captions, footer=self.sheet_footer)
        return f"; {SHEET_NAME} shows the first {len(shown)}"


def warn_of_unlike(found: Mapping[str, float | str | None]) -> None:
    """Name the images that are above 1."""
    names = [name for name, value in found.items() if isinstance(value, float) and value > 1]
    if names:
        first = ", ".join(names[:NAMED_FAILURES])
        _logger.warning(
            "%d of %d images are unlike those that the weights were trained on (unlikeness above 1 in the table), so "
            "that what was made of them means little: %s%s",
            *(len(names), len(found), first, ", …" if len(names) > NAMED_FAILURES else ""),
        )


def _note(failures: dict[str, str], item: Item, problem: Exception | str) -> None:
    name = item.source or item.name
    failures[name] = str(problem).removeprefix(f"{name}: ")
    _logger.error("%s failed: %s", name, failures[name])
