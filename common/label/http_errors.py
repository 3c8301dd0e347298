"""Errors as MONAI Label's clients get them: a status and a message that says what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ..errors import UserError

BAD_REQUEST, NOT_FOUND, NOT_ALLOWED, CONFLICT, BAD_GATEWAY = 400, 404, 405, 409, 502


class ArchiveError(UserError, OSError):
    """The archive is away, or does not do what DICOMweb says."""


@contextmanager
def as_http_errors(upload: str | Path | None = None) -> Iterator[None]:
    """Within the block, what is the client's to mend becomes an HTTP error with our message.

    MONAI Label's endpoints turn every error into an empty 500, but let HTTP errors through.

    Args:
        upload: the temporary file of a refused upload, which MONAI Label removes only where all went well.
    """
    try:
        yield
    except ArchiveError as error:
        discard_upload(upload)
        raise HTTPException(BAD_GATEWAY, str(error)) from error
    except UserError as error:
        discard_upload(upload)
        raise HTTPException(BAD_REQUEST, str(error)) from error
    except (ImageNotFoundException, LabelNotFoundException) as error:
        discard_upload(upload)
        raise HTTPException(NOT_FOUND, error.msg) from error


def discard_upload(path: str | Path | None) -> None:
    """Remove a file that MONAI Label's endpoint wrote into the temporary folder; anything else stays."""
    if path and Path(path).parent == Path(tempfile.gettempdir()) and Path(path).name.startswith("tmp"):
        Path(path).unlink(missing_ok=True)
