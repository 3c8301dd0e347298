"""Errors as MONAI Label's clients get them: a status and a message that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ..errors import UserError

BAD_REQUEST, NOT_FOUND, NOT_ALLOWED, CONFLICT, BAD_GATEWAY = 400, 404, 405, 409, 502


class ArchiveError(UserError, OSError):
    """The archive is away, or does not do what DICOMweb says."""


@contextmanager
def as_http_errors() -> Iterator[None]:
    """Within the block, what is the client's to mend becomes an HTTP error with our message.

    MONAI Label's endpoints turn every error into an empty 500, but let HTTP errors through.
    """
    try:
        yield
    except ArchiveError as error:
        raise HTTPException(BAD_GATEWAY, str(error)) from error
    except UserError as error:
        raise HTTPException(BAD_REQUEST, str(error)) from error
    except (ImageNotFoundException, LabelNotFoundException) as error:
        raise HTTPException(NOT_FOUND, error.msg) from error
