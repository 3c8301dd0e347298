"""A progress bar with the time to go; where nobody watches, a line a minute in the log instead."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .distributed import is_rank_zero

QUIET_SECONDS = 60.0
MAX_COLUMNS = 80
QUIET_TEXT = "{desc}: {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} to go{postfix}"
QUIET_TEXT_WITHOUT_TOTAL = "{desc}: {elapsed} so far{postfix}"

_logger = logging.getLogger(__name__)


def stopwatch() -> Callable[[], timedelta]:
    """How long ago this was called, in whole seconds: what the last line of a command says."""
    began = time.monotonic()
    return lambda: timedelta(seconds=round(time.monotonic() - began))


class ProgressBar(tqdm):
    """tqdm of at most 80 columns on a terminal, with lines of the log above it; a line a minute in the log elsewhere.

    Of the processes of a torchrun job only the first shows it.
    """

    def __init__(self, *args: Any, disable: bool = False, **options: Any) -> None:
        self.is_watched = sys.stderr.isatty()
        self.restored = ExitStack()
        if self.is_watched:
            options |= {"ncols": min(MAX_COLUMNS, shutil.get_terminal_size().columns)}
        else:
            options |= {"mininterval": QUIET_SECONDS, "maxinterval": QUIET_SECONDS, "bar_format": QUIET_TEXT}
        super().__init__(*args, **{**options, "disable": disable or not is_rank_zero()})
        if not self.is_watched and not self.disable and self.total is None:
            self.bar_format = QUIET_TEXT_WITHOUT_TOTAL
        if self.is_watched and not self.disable:
            self.restored.enter_context(logging_redirect_tqdm(tqdm_class=tqdm))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or log its line once there is something to tell."""
        if self.is_watched:
            super().display(msg, pos)
        elif self.n > self.initial:
            _logger.info("%s", str(self))  # as it is now

    def close(self) -> None:
        """End; what was done is for the caller to say."""
        if not self.is_watched and not self.disable:
            self.leave, self.initial = False, self.n
        super().close()
        self.restored.close()
