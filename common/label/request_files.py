"""Where the files of a request lie: each request's in a folder of its own, and a session's under a name like a key."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from fastapi import HTTPException
from monailabel.utils.sessions import SessionInfo, Sessions

PREFIX, STALE_SECONDS = "label_request_", 3600

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_SESSION_ID = re.compile(r"[0-9a-f-]{36}")


def request_folder() -> Path:
    """The folder of the request that is being answered; outside of one, that of all temporary files."""
    return _folder.get() or Path(tempfile.gettempdir())


def is_of_request(path: str | Path) -> bool:
    """Whether a file lies in the folder of the request that is being answered."""
    folder = _folder.get()
    return folder is not None and Path(path).resolve().is_relative_to(folder)


@contextmanager
def new_request_folder() -> Iterator[Path]:
    """Within the block, `request_folder` is a new folder; at its end it goes with all that is in it."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}_", ignore_cleanup_errors=True) as name:
        token = _folder.set(Path(name).resolve())
        try:
            yield request_folder()
        finally:
            _folder.reset(token)


def keep_files_in_request_folder() -> None:
    """Have MONAI Label write there what it writes into the folder for temporary files, which all requests share."""
    from monailabel.datastore import local
    from monailabel.endpoints import datastore, infer, session

    def named_temporary_file(**options: Any) -> Any:
        return tempfile.NamedTemporaryFile(dir=request_folder(), **options)

    for module in (datastore, infer, local, session):
        module.tempfile = SimpleNamespace(NamedTemporaryFile=named_temporary_file)


def remove_stale_request_folders() -> None:
    """Remove what servers left that were killed while they answered; an hour later, as others may hide their ids."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*_*"):
        server = folder.name.removeprefix(PREFIX).partition("_")[0]
        with suppress(FileNotFoundError):
            is_old = time.time() - folder.stat().st_mtime > STALE_SECONDS
            if is_old and server.isdecimal() and not psutil.pid_exists(int(server)):
                shutil.rmtree(folder, ignore_errors=True)


class CheckedSessions(Sessions):
    """Sessions of one radiograph each, under names that cannot be guessed."""

    def get_session(self, session_id: str, *args: Any, **kwargs: Any) -> SessionInfo | None:
        """The session of this id; None if there is none, or if it is a path."""
        return super().get_session(session_id, *args, **kwargs) if _SESSION_ID.fullmatch(session_id) else None

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, SessionInfo]:
        """Keep a file; refuses archives, which could unpack to anywhere and to any size, and several files."""
        if uncompress or Path(data_file).is_dir():
            raise HTTPException(400, "session: found an archive or several files; expected one radiograph.")
        return super().add_session(data_file, expiry, session_id=session_id or str(uuid.uuid4()))
