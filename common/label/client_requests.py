"""What clients send: whether it is of the kind that endpoints and tasks expect, and where the files of a request lie.

Each request's files lie in a folder of its own, and a session's under a name like a key.
"""

from __future__ import annotations

import json
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
from typing import Annotated, Any, TypeVar

import psutil
import torch
from fastapi import HTTPException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import device_map, name_to_device
from monailabel.utils.sessions import SessionInfo, Sessions
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from ..errors import SettingsError

MAX_NAME_BYTES = 240  # of what may become the name of a file
SERVER_NOTES = {"strategy", "epistemic"}  # what the server itself notes of an image, and goes by later

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_ESCAPED_CONTROLS = re.compile(r"\\u00[01]")
_QUERY = {  # what MONAI Label hands on as it comes
    "check_sum": (r"((SHA256|SHA512|MD5):)?[0-9A-Fa-f]+", "hexadecimal digits after SHA256:, SHA512: or MD5:"),
    "lines": (r"-?\d{1,9}", "a whole number of up to nine digits"),
}

Parameters = TypeVar("Parameters", bound=BaseModel)
PREFIX, STALE_SECONDS = "label_request_", 3600

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_SESSION_ID = re.compile(r"[0-9a-f-]{36}")


# ---- what they send -------------------------------------------------------------------------------------------------


def refusal(name: str, found: Any, expected: str) -> SettingsError:
    """The error for a value of a request that cannot be used."""
    return SettingsError(f"{name}: found {found!r:.80}; expected {expected}.")


class Strict(BaseModel):
    """Parameters whose values are not converted; those that it does not name may be anything."""

    model_config = ConfigDict(strict=True)


def parsed(kind: type[Parameters], values: Any, name: str = "params") -> Parameters:
    """The parameters that a task takes, out of all that a client sends.

    Only what the types allow gets through: to MONAI's parser a text that starts with $ is code.

    Raises:
        SettingsError: a value of another type or out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise refusal(str(first["loc"][0]) if first["loc"] else name, first["input"], expected) from error


def _known_device(value: Any) -> Any:
    """Check that torch has the device; as in MONAI Label a list is its first, and CUDA the CPU where there is none."""
    name = value[0] if isinstance(value, list) and value else value
    if name is None or isinstance(name, str):
        with suppress(RuntimeError):
            device = torch.device(name_to_device(name))
            if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()):
                return value
    raise ValueError(f"one of {', '.join({'cpu': '', 'cuda': '', **device_map()})}")


_Count = Annotated[int, Field(ge=0, lt=2**31)]


class TaskParameters(Strict):
    """What MONAI Label itself reads; what the project's own tasks read they check themselves."""

    image: str = ""
    model: str = ""
    method: str = ""
    strategy: str = ""
    result_extension: str | None = None
    label_tag: str = ""
    images: str | list[str] = ""
    device: Annotated[Any, AfterValidator(_known_device)] = None
    gpus: Annotated[str, Field(pattern=r"^(all|\d{1,3}(,\d{1,3})*)$")] = "all"
    multi_gpu: bool = True
    save_label: bool = False
    max_batch_size: _Count = 0
    max_workers: _Count = 0


def check_name(name: str, text: str, limit: int = MAX_NAME_BYTES) -> None:
    """Refuse what cannot be the name of a file: control characters, NUL among them, and too many bytes."""
    if _CONTROLS.search(text) or len(text.encode(errors="surrogatepass")) > limit:
        raise refusal(name, text, f"a name of up to {limit} bytes without control characters")


def check_query(request: Request) -> None:
    """Refuse names, check sums and numbers in the query that are none."""
    for name, text in request.query_params.multi_items():
        check_name(name[:80], text)
        pattern, expected = _QUERY.get(name, (None, ""))
        if pattern and text and not re.fullmatch(pattern, text):
            raise refusal(name, text, expected)


async def check_body(request: Request, path: str) -> None:
    """Check forms and JSON as the endpoints will read them; anything else is left to them.

    Raises:
        SettingsError: says what was found and expected.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        value = _json("body", await request.body())
        if value is not None:
            _check_params("body", value)
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with request.form() as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    file_name = os.path.basename(value.filename or "")
                    check_name(f"name of {name}", file_name)
                    if file_name in (".", ".."):
                        raise refusal(f"name of {name}", file_name, "the name of a file")
                elif name in ("params", "info"):
                    check = _check_notes if path.startswith("/datastore") else _check_params
                    check(name, _json(name, value or "{}"))


def _check_params(name: str, params: Any) -> None:
    parsed(TaskParameters, params, name)
    app = app_instance()
    for key in params.keys() & {*app._trainers, *app._scoring_methods}:  # those of one task, where all are run
        _check_params(key, params[key])


def _check_notes(name: str, notes: Any) -> None:
    if not isinstance(notes, dict) or notes.keys() & SERVER_NOTES:
        raise refusal(name, notes, f"an object without {' and '.join(SERVER_NOTES)}, which the server notes")


def _json(name: str, text: str | bytes) -> Any:
    try:
        value = json.loads(text)
        # What JSON cannot hold again, such as 1e999 or half a surrogate pair, would break all later answers with it.
        written = json.dumps(value, allow_nan=False, ensure_ascii=False)
        written.encode()
    except (ValueError, RecursionError) as error:
        raise refusal(name, text, "a JSON object with finite numbers") from error
    if _ESCAPED_CONTROLS.search(written):
        raise refusal(name, written, "text without control characters")
    return value


# ---- their files ----------------------------------------------------------------------------------------------------


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
