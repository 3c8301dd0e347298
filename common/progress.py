"""A progress bar with the time to go; where nobody watches, a line a minute in the log instead."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

QUIET_SECONDS = 60.0

_logger = logging.getLogger(__name__)


class ProgressBar(tqdm):
    """tqdm on a terminal; a line a minute in the log elsewhere."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.is_watched = sys.stderr.isatty()
        if not self.is_watched:
            text = "{desc}: {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} to go"
            options |= {"mininterval": QUIET_SECONDS, "maxinterval": QUIET_SECONDS, "bar_format": text}
        super().__init__(*args, **{"dynamic_ncols": True, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or log its line once there is something to tell."""
        if self.is_watched:
            super().display(msg, pos)
        elif self.n > self.initial:
            _logger.info("%s", self)

    def close(self) -> None:
        """End; what was done is for the caller to say."""
        if not self.is_watched and not self.disable:
            self.leave, self.initial = False, self.n
        super().close()
