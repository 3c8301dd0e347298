"""Find unreadable files before training starts: skip them, report them, stop when there are too many."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from ..distributed import is_rank_zero, world_size
from ..errors import DatasetError
from ..files import write_csv
from ..io import UnreadableRadiographError, read_radiograph
from ..io.mask_files import read_mask
from .datalists import radiograph_items

logger = logging.getLogger(__name__)

INDEX_NAME = "readable.csv"
SKIPPED_NAME = "skipped.csv"
_INDEX_COLUMNS = ("image", "size", "mtime_ns")
_SKIPPED_COLUMNS = ("name", "image", "found", "expected", "hint")

Stamp = tuple[int, int]  # size in bytes, mtime in ns


@dataclass(frozen=True)
class _Problem:
    """Why one file cannot be used; fields as in skipped.csv."""

    image: str
    found: str
    expected: str
    hint: str = ""


def readable_radiographs(
    dataset_dir: str | os.PathLike[str],
    split: str,
    val_fraction: float,
    seed: int,
    report_dir: str | os.PathLike[str],
    max_unreadable_share: float = 0.5,
    test_fraction: float = 0.0,
    patient_id_pattern: str | None = None,
    where: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> list[dict[str, str]]:
    """List the radiographs of one split that can be read: `radiograph_items` and `readable_items` in one.

    Where the data set brings no `split` column, files are read before patients are split, and the share of bad ones is
    that of all files.

    Raises:
        DatasetError: as both of them.
    """

    def keep(items: list[dict[str, str]]) -> list[dict[str, str]]:
        name = split if "split" in items[0] else "all"
        return readable_items(items, report_dir, name, max_unreadable_share)

    return radiograph_items(
        dataset_dir, split, val_fraction, seed, test_fraction, patient_id_pattern, where, limit, keep=keep
    )


def readable_items(
    items: Sequence[Mapping[str, Any]],
    report_dir: str | os.PathLike[str],
    name: str = "data",
    max_unreadable_share: float = 0.05,
    num_workers: int | None = None,
    keys: Sequence[str] = ("image",),
    save_every_s: float = 20.0,
) -> list[dict[str, Any]]:
    """Keep the items whose files can be read.

    Every file is decoded once. Readable ones are remembered by path, size and modification time in
    `<report_dir>/readable.csv`, which all names share, so a scan that was killed goes on where it was and the next
    start reads only what is new or changed. Unreadable ones are not remembered: they are tried again at each start,
    as they may have been repaired or their decoder installed. They are listed in `<report_dir>/skipped.csv`.

    In a distributed run rank 0 scans and writes, the others wait for its verdict; all must pass the same items.

    Args:
        items: data list with paths under `keys`.
        report_dir: folder for both files, made when missing.
        name: what the list is called in messages and in skipped.csv, for instance "train".
        max_unreadable_share: largest share of unusable items to go on with, in [0, 1].
        num_workers: reading threads; None for one per core, at most 8.
        keys: what to read fully, "mask" as a mask. A `mask` that is not among them only has to exist.
        save_every_s: seconds between saves of readable.csv during a scan.

    Returns:
        Copies of the usable items, in the given order; never empty.

    Raises:
        DatasetError: no items, none usable, or more than `max_unreadable_share` not; skipped.csv is written before.
    """
    if not items:
        raise DatasetError(f"the {name} list is empty; there is nothing to read")
    if not 0 <= max_unreadable_share <= 1:
        raise DatasetError(f"max_unreadable_share is {max_unreadable_share}; it is a share between 0 and 1")

    def scan() -> list[int]:
        problems = _scan(items, Path(report_dir), name, keys, num_workers, save_every_s)
        _write_skipped(Path(report_dir) / SKIPPED_NAME, name, problems.values())
        _judge(len(items), list(problems.values()), Path(report_dir) / SKIPPED_NAME, name, max_unreadable_share)
        return [index for index in range(len(items)) if index not in problems]

    return [dict(items[index]) for index in _on_first_rank(scan)]


def fail_if_skipped(report_dir: str | os.PathLike[str]) -> None:
    """The end of a batch job: the good ones are done, now fail if some files had to be skipped.

    Raises:
        DatasetError: says how many and where they are listed.
    """
    report = Path(report_dir) / SKIPPED_NAME
    skipped = {row[1] for row in _read_rows(report, _SKIPPED_COLUMNS)}
    if skipped:
        raise DatasetError(f"{len(skipped)} files could not be read and are listed in {report}; all others are done")


def _on_first_rank(scan: Callable[[], list[int]]) -> list[int]:
    """Run `scan` on rank 0 only; all ranks return its result or raise its error."""
    if world_size() == 1:
        return scan()
    # Beside nccl a group of its own: scanning may outlast nccl's timeout, and gloo carries the verdict without a GPU.
    # It lives until `distributed.leave`, which waits for its threads.
    group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=timedelta(days=2))
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if is_rank_zero():
        try:
            outcome[0] = scan()
        except Exception as caught:  # the other ranks would wait for ever
            error, outcome[1] = caught, str(caught)
    dist.broadcast_object_list(outcome, src=0, group=group)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise DatasetError(outcome[1])
    return outcome[0]


def _scan(
    items: Sequence[Mapping[str, Any]],
    report_dir: Path,
    name: str,
    keys: Sequence[str],
    num_workers: int | None,
    save_every_s: float,
) -> dict[int, _Problem]:
    """The problem of each unusable item, by index; reads what the index does not know yet."""
    report_dir.mkdir(parents=True, exist_ok=True)
    index_path = report_dir / INDEX_NAME
    index = _read_index(index_path)
    kinds = {str(item[key]): key for item in items for key in keys if key in item}
    stamps = {path: _stamp(path) for path in sorted(kinds)}
    problems = {path: _missing(path) for path, stamp in stamps.items() if stamp is None}
    unknown = [path for path, stamp in stamps.items() if stamp is not None and index.get(path) != stamp]
    saved = time.monotonic()
    pool = ThreadPoolExecutor(num_workers or min(8, os.cpu_count() or 1))
    try:
        jobs = {pool.submit(_try_to_read, path, kinds[path]): path for path in unknown}
        bar = tqdm(as_completed(jobs), total=len(jobs), desc=f"reading {name}", unit="file", disable=not jobs)
        for job in bar:
            path, problem, stamp = jobs[job], job.result(), stamps[jobs[job]]
            if problem is not None:
                problems[path] = problem
            elif stamp is not None:
                index[path] = stamp
            if time.monotonic() - saved >= save_every_s:
                _write_index(index_path, index)
                saved = time.monotonic()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if unknown:
            _write_index(index_path, index)
    return _problems_of_items(items, keys, problems)


def _problems_of_items(
    items: Sequence[Mapping[str, Any]], keys: Sequence[str], problems: Mapping[str, _Problem]
) -> dict[int, _Problem]:
    """The first problem of each item that has one, by index."""
    found: dict[int, _Problem] = {}
    for index, item in enumerate(items):
        bad = [problems[str(item[key])] for key in keys if key in item and str(item[key]) in problems]
        if not bad and "mask" in item and "mask" not in keys and not os.path.isfile(item["mask"]):
            bad = [_missing(str(item["mask"]))]
        if bad:
            found[index] = bad[0]
    return found


def _stamp(path: str) -> Stamp | None:
    """Size and modification time of a file; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _missing(path: str) -> _Problem:
    return _Problem(path, "no such file", "a file", "correct its path in the manifest, or restore it")


def _try_to_read(path: str, kind: str) -> _Problem | None:
    """Decode one file; None when that works."""
    try:
        if kind == "mask":
            read_mask(path)
        else:
            read_radiograph(path)
    except UnreadableRadiographError as error:
        return _Problem(path, str(error.found), str(error.expected), str(error.hint))
    except Exception as error:  # whatever a decoder does with a damaged file, it must not end the scan
        wanted = "a mask" if kind == "mask" else "a radiograph"
        return _Problem(path, f"{type(error).__name__}: {error}", wanted, "open it in a viewer, or remove it")
    return None


def _judge(total: int, problems: Sequence[_Problem], report: Path, name: str, max_share: float) -> None:
    """Warn about skipped items, or raise when too many are."""
    if not problems:
        return
    share = len(problems) / total
    first = "; ".join(f"{problem.image} ({problem.found})" for problem in problems[:3])
    message = (
        f"{len(problems)} of {total} {name} items ({share:.1%}) cannot be read: {first}; all are listed in {report}"
    )
    if len(problems) == total:
        raise DatasetError(f"{message}; none is left")
    if share > max_share:
        raise DatasetError(f"{message}; more than max_unreadable_share {max_share:.1%}: repair or remove them")
    logger.warning("skipped: %s", message)


def _read_index(path: Path) -> dict[str, Stamp]:
    """What is known to be readable; a damaged or foreign index counts as empty."""
    rows = _read_rows(path, _INDEX_COLUMNS)
    try:
        return {image: (int(size), int(mtime)) for image, size, mtime in rows}
    except ValueError:
        logger.warning("%s is damaged; reading all files again", path)
        return {}


def _write_index(path: Path, index: Mapping[str, Stamp]) -> None:
    # list() first: it is quick, and rows come in the order of discovery
    write_csv(path, _INDEX_COLUMNS, [(image, *stamp) for image, stamp in list(index.items())])


def _write_skipped(path: Path, name: str, problems: Iterable[_Problem]) -> None:
    """Replace the rows of one name, keep those of the others."""
    others = [tuple(row) for row in _read_rows(path, _SKIPPED_COLUMNS) if row[0] != name]
    write_csv(path, _SKIPPED_COLUMNS, [*others, *((name, *astuple(problem)) for problem in problems)])


def _read_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Rows of a CSV file with exactly these columns; none where it is missing or something else."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, csv.Error):
        return []
    if not rows or tuple(rows[0]) != tuple(columns):
        return []
    return [row for row in rows[1:] if len(row) == len(columns)]
