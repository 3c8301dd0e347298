"""Errors that are the user's to mend, and their last word on the command line."""

from __future__ import annotations

import errno
import sys
from types import TracebackType

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
WORKER_DIED = "DataLoader worker (pid"  # how torch's message begins


class UserError(Exception):
    """Base of errors whose message says what was found, what was expected and what to do; no traceback is needed."""


class SettingsError(UserError, ValueError):
    """Settings that are out of range, contradict each other, or do not fit what they are used with."""


class DatasetError(UserError, ValueError):
    """A data set, or what was made of it, that cannot be used as it is."""


class WeightsError(UserError, ValueError):
    """Weights that are missing, damaged, or of something else."""


class CheckpointMismatchError(UserError, ValueError):
    """A run would go on with other settings or data than it was begun with."""


class NonFiniteLossError(UserError, FloatingPointError):
    """A loss or a gradient is not finite."""


class RunError(UserError, RuntimeError):
    """A command or a stage cannot do its work, or did not come to its end."""


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`: for messages."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def root_user_error(error: BaseException | None) -> UserError | None:
    """Return the first UserError in the chain of causes, or None: MONAI wraps what its components raise."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def end_with_user_errors() -> None:
    """From now on let an uncaught error that comes from a UserError end with its message, not with a traceback.

    MONAI wraps every error of a component into "Failed to instantiate component ...", printed last.
    """
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return  # who pressed Ctrl-C knows; the trainer has said how to go on
    cause: BaseException | None = root_user_error(error) or _of_the_machine(error)
    if cause is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sys.stderr.write(f"{type(cause).__name__}: {cause}\n")


def _of_the_machine(error: BaseException | None) -> RunError | None:
    """A full disk, a folder that is not to be written to, too little shared memory: one sentence, too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return RunError(
                f"{error.filename or 'a file'} cannot be opened or written ({error.strerror}); what was whole is still "
                "there. Make room, or give another folder, and run the same command again"
            )
        if isinstance(error, RuntimeError) and str(error).startswith(WORKER_DIED):
            return RunError(
                f"{' '.join(str(error).split())[:200]}; a process that loads data died, of too little memory or shared "
                "memory (/dev/shm): give --num_workers 0, or more of it"
            )
        error = error.__cause__ or error.__context__
    return None
