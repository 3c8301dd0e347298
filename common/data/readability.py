"""Find unreadable files before training starts: skip them, report them, stop when there are too many."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..distributed import is_rank_zero, world_size
from ..errors import DatasetError, counted
from ..files import file_stamp, write_csv
from ..io import UnreadableRadiographError, read_radiograph
from ..io.mask_files import read_mask
from ..progress import ProgressBar
from .datalists import radiograph_items

logger = logging.getLogger(__name__)

INDEX_NAME, SKIPPED_NAME = "readable.csv", "skipped.csv"
SAVE_EVERY_S = 20.0  # what a killed scan may lose; a second for every 10,000 files where these are more
_INDEX_COLUMNS = ("image", "size", "mtime_ns")
_SKIPPED_COLUMNS = ("name", "image", "found", "expected", "hint")

Problem = tuple[str, str, str, str]  # why a file cannot be used: the columns of skipped.csv after the first
_MISSING = ("no such file", "a file", "correct its path in the manifest, or restore it")


def readable_radiographs(
    dataset_dir: str | os.PathLike[str],
    split: str,
    val_fraction: float,
    seed: int,
    report_dir: str | os.PathLike[str],
    max_unreadable_share: float = 0.5,
    keys: Sequence[str] = ("image",),
    **selection: Any,
) -> list[dict[str, str]]:
    """List the radiographs of one split that have all `keys` and can be read, see `readable_items`.

    Where the data set brings no `split` column, files are read before patients are split, and the share of bad ones is
    that of all files. `selection` is what else `radiograph_items` takes.

    Raises:
        DatasetError: as `radiograph_items` and `readable_items`; or no image has a mask that is among the keys.
    """

    def keep(items: list[dict[str, str]]) -> list[dict[str, str]]:
        complete = [item for item in items if item.keys() >= set(keys)]
        if not complete:
            raise DatasetError(
                f"{dataset_dir}: none of the {len(items)} images has a mask; expected a manifest.csv with a column "
                "mask. pretrain.yaml needs no masks"
            )
        name = split if "split" in items[0] else "all"
        return readable_items(complete, report_dir, name, max_unreadable_share, keys)

    return radiograph_items(dataset_dir, split, val_fraction, seed, keep=keep, **selection)


def readable_items(
    items: Sequence[Mapping[str, Any]],
    report_dir: str | os.PathLike[str],
    name: str = "data",
    max_unreadable_share: float = 0.05,
    keys: Sequence[str] = ("image",),
) -> list[dict[str, Any]]:
    """Copies of the items whose files can be read, in the given order; never none.

    Every file is decoded once. Readable ones are remembered by path, size and modification time in
    `<report_dir>/readable.csv`, which all names share, so that the next scan, and that after a kill, reads only what is
    new or changed. Unreadable ones are listed in `<report_dir>/skipped.csv` and tried again at each start, as they may
    have been repaired or their decoder installed.

    In a distributed run rank 0 scans and writes, the others wait for its verdict; all must pass the same items.

    Args:
        items: data list with paths under `keys`.
        report_dir: folder for both files, made when missing.
        name: what the list is called in messages and in skipped.csv, for instance "train".
        max_unreadable_share: largest share of unusable items to go on with, in [0, 1].
        keys: what to read fully, "mask" as a mask. A `mask` that is not among them only has to exist.

    Raises:
        DatasetError: no items, none usable, or more than `max_unreadable_share` not; skipped.csv is written before.
    """
    if not items:
        raise DatasetError(f"the {name} list is empty; there is nothing to read")
    if not 0 <= max_unreadable_share <= 1:
        raise DatasetError(f"max_unreadable_share is {max_unreadable_share}; it is a share between 0 and 1")

    def scan() -> list[int]:
        report = Path(report_dir) / SKIPPED_NAME
        paths = [[(key, str(item[key])) for key in (*keys, "mask") if key in item] for item in items]
        kinds = {path: key for of_item in paths for key, path in of_item}
        problems = _scan(kinds, Path(report_dir) / INDEX_NAME, name, keys)
        first = [next((problems[path] for _, path in of_item if path in problems), None) for of_item in paths]
        found = [problem for problem in first if problem is not None]
        others = [tuple(row) for row in _read_rows(report, _SKIPPED_COLUMNS) if row[0] != name]
        write_csv(report, _SKIPPED_COLUMNS, [*others, *((name, *problem) for problem in found)])
        _judge(len(items), found, report, name, max_unreadable_share)
        return [index for index, problem in enumerate(first) if problem is None]

    return [dict(items[index]) for index in _on_first_rank(scan)]


def fail_if_skipped(report_dir: str | os.PathLike[str]) -> None:
    """The end of a batch job: the good ones are done; raises `DatasetError` if some files had to be skipped."""
    report = Path(report_dir) / SKIPPED_NAME
    skipped = {row[1] for row in _read_rows(report, _SKIPPED_COLUMNS)}
    if skipped:
        number = counted(len(skipped), "file")
        raise DatasetError(f"{number} could not be read, as listed in {report}; all others are done")


def _on_first_rank(scan: Callable[[], list[int]]) -> list[int]:
    """Run `scan` on rank 0 only; all ranks return its result or raise its error."""
    if world_size() == 1:
        return scan()
    # Beside nccl a group of its own: scanning may outlast nccl's timeout, and gloo carries the verdict without a GPU.
    # It lives until `distributed.leave`, which waits for its threads.
    group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=timedelta(days=2))
    verdict: list[Any] = [None, None]
    try:
        verdict[0] = scan() if is_rank_zero() else None
    except Exception as error:  # the other ranks would wait for ever
        verdict[1] = str(error)
        raise
    finally:
        dist.broadcast_object_list(verdict, src=0, group=group)
    if verdict[1] is not None:
        raise DatasetError(verdict[1])
    return verdict[0]


def _scan(kinds: Mapping[str, str], index_path: Path, name: str, keys: Sequence[str]) -> dict[str, Problem]:
    """What is wrong with files, by path, of which `kinds` has the key; reads what readable.csv does not know yet."""
    try:
        index = {image: [int(size), int(mtime)] for image, size, mtime in _read_rows(index_path, _INDEX_COLUMNS)}
    except ValueError:
        logger.warning("%s is damaged; reading all files again", index_path)
        index = {}
    stamps = {path: file_stamp(path) for path in sorted(kinds)}
    problems: dict[str, Problem] = {path: (path, *_MISSING) for path, stamp in stamps.items() if not stamp}
    unknown = [path for path, stamp in stamps.items() if stamp and kinds[path] in keys and index.get(path) != stamp]
    saved = time.monotonic()
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        found = pool.map(_try_to_read, unknown, [kinds[path] for path in unknown])
        bar = ProgressBar(found, total=len(unknown), desc=f"reading {name}", unit="file", disable=not unknown)
        for path, problem in zip(unknown, bar, strict=True):
            if problem is not None:
                problems[path] = problem
            else:
                index[path] = stamps[path]
            if time.monotonic() - saved >= max(SAVE_EVERY_S, len(index) // 10_000):
                _write_index(index_path, index)
                saved = time.monotonic()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if unknown:
            _write_index(index_path, index)
    return problems


def _try_to_read(path: str, kind: str) -> Problem | None:
    """Decode one file; None when that works."""
    try:
        read_mask(path) if kind == "mask" else read_radiograph(path)
    except UnreadableRadiographError as error:
        return path, str(error.found), str(error.expected), str(error.hint)
    except Exception as error:  # whatever a decoder does with a damaged file, it must not end the scan
        wanted = "a mask" if kind == "mask" else "a radiograph"
        return path, f"{type(error).__name__}: {error}", wanted, "open it in a viewer, or remove it"
    return None


def _judge(total: int, problems: Sequence[Problem], report: Path, name: str, max_share: float) -> None:
    """Warn about skipped items, or raise when too many are."""
    if not problems:
        return
    share = len(problems) / total
    first = "; ".join(f"{image} ({found})" for image, found, *_ in problems[:3])
    files = counted(total, "file" if name in ("all", "data") else f"{name} file")
    message = (
        f"{len(problems)} of {files} ({round(100 * share, 1):g} %) cannot be read: {first}; all are listed in {report}"
    )
    if len(problems) == total:
        raise DatasetError(f"{message}; none is left")
    if share > max_share:
        raise DatasetError(f"{message}; more than max_unreadable_share {max_share:g}: repair or remove them")
    logger.warning("skipped: %s", message)


def _write_index(path: Path, index: Mapping[str, list[int]]) -> None:
    write_csv(path, _INDEX_COLUMNS, [(image, *stamp) for image, stamp in index.items()])


def _read_rows(path: Path, columns: Iterable[str]) -> list[list[str]]:
    """Rows of a CSV file with exactly these columns; none where it is missing or something else."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error):  # ValueError: empty
        return []
    return [row for row in rows if len(row) == len(header)] if header == [*columns] else []
