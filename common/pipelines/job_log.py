"""What is done in the folder of a job: a line for each item, on disk before the next begins, and `job.json`."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import __version__
from ..distributed import is_rank_zero, rank
from ..errors import CheckpointMismatchError, RunError
from ..files import JOB_RECORD, file_stamp, read_json, write_json
from ..provenance import command_line, git_state

LOG_NAME = "job_items.jsonl"
SHARES_NAME = "job_items_*.jsonl"  # of the other processes of a torchrun job

Row = dict[str, Any]  # of a table, in plain JSON types

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One input."""

    name: str  # of its results, unique in the folder
    source: str = ""  # path of its file; "" where it comes from none
    content: Any = None  # what else the job needs of it


@dataclass(frozen=True)
class Entry:
    """An item that is done: its name and source, size and time of that as it was (None: not all is done), its row."""

    name: str
    source: str
    stamp: list[int] | None
    row: Row


class JobLog:
    """What is done in a folder, for the process that holds its lock: a line each, whole or absent.

    Other processes of its torchrun job note what they do in files of their own, which it takes over. Where the settings
    of this run are not those of the folder, its items count as not done, or, with `keeps_folder`:

    Raises:
        CheckpointMismatchError: names the settings that differ, or the folder is of another make.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], keeps_folder: bool) -> None:
        self.path, self.record_path, self.settings = folder / LOG_NAME, folder / JOB_RECORD, settings
        self.entries: dict[str, Entry] = {}
        self.runs: list[dict[str, Any]] = []
        changes = ""
        if self.record_path.is_file():
            record = read_json(self.record_path)
            self.runs, there = record["runs"], record["settings"]
            keys = [key for key in sorted({*there, *settings}) if there.get(key) != settings.get(key)]
            changes = "; ".join(f"{key}: {there.get(key)} there, {settings.get(key)} now" for key in keys)
        elif (folder / "manifest.csv").exists():
            changes = f"manifest.csv without {JOB_RECORD}"
        if changes and keeps_folder:
            raise CheckpointMismatchError(
                f"{folder} was made with other settings ({changes}). Going on would mix two sets: give another "
                "output_dir, or the settings of that run; delete the folder to start over"
            )
        if changes:
            _logger.info("%s was made with other settings (%s): all is made again", folder, changes)
            self.path.write_bytes(b"")
            for path in folder.glob(SHARES_NAME):
                path.unlink()
        elif self.path.is_file():
            self.entries = self._read(self.path)
        if not is_rank_zero():
            self.path = folder / SHARES_NAME.replace("*", str(rank()))
            return
        self.take_shares()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.runs.append({"date": now, "command": command_line(), "common": __version__, "git": git_state()})
        self.close({})

    def has(self, item: Item, result: Path) -> bool:
        """Whether an item needs no work: its file is there, and made of the source as it is now; or it was dropped."""
        entry = self.entries.get(item.name)
        if entry is None:
            return False
        is_current = entry.source == item.source and entry.stamp == file_stamp(item.source)
        is_done = is_current and (bool(entry.row.get("dropped")) or result.is_file())
        if not is_done:
            del self.entries[item.name]
        return is_done

    def append(self, entries: Sequence[Entry]) -> None:
        """Note items; on return that is on disk. A failure (a full disk, Ctrl-C) leaves the file as it was.

        Raises:
            RunError: the folder was deleted meanwhile.
        """
        if not self.record_path.is_file():
            raise RunError(f"{self.path.parent} was deleted or emptied during the run; run again")
        lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries).encode()
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
        self.entries.update({entry.name: entry for entry in entries})

    def take_shares(self) -> None:
        """Note what other processes did."""
        shares = sorted(self.path.parent.glob(SHARES_NAME))
        if shares:
            self.append([entry for path in shares for entry in self._read(path).values()])
        for path in shares:
            path.unlink()

    def close(self, outcome: Mapping[str, Any]) -> None:
        """Record how the run ended."""
        self.runs[-1] |= outcome
        write_json(self.record_path, {"settings": self.settings, "runs": self.runs})

    def _read(self, path: Path) -> dict[str, Entry]:
        """Read the whole lines, and cut off what a kill left of the last one."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        try:
            entries = [Entry(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise CheckpointMismatchError(f"{path} is damaged ({error}); delete it to make all again") from error
        return {entry.name: entry for entry in entries}
