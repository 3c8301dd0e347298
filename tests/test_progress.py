import io
import logging
import sys

import pytest

from common import progress
from common.progress import MAX_COLUMNS, ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Stands for a terminal, to which the log goes too; not a fixture, as pytest captures anew for the test itself."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers, logging.StreamHandler(sys.stderr)])
    return sys.stderr


def test_a_bar_fits_80_columns_and_lines_of_the_log_stand_above_it(monkeypatch):
    shown = terminal(monkeypatch)
    handlers = list(logging.root.handlers)
    with ProgressBar(total=4, desc="a long description " * 6, mininterval=0) as bar:
        for _ in range(4):
            bar.set_postfix_str("a loss of 0.123456789", refresh=False)
            bar.update()
            logging.getLogger("common").warning("told")
    assert logging.root.handlers == handlers
    drawn = shown.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, drawn)) <= MAX_COLUMNS
    assert drawn.count("told") == 4  # each on a line of its own
    assert sum(line.startswith("a long") for line in drawn) > 4


@pytest.mark.parametrize(("seconds", "lines"), [(60.0, 0), (0.0, 3)])
def test_where_nobody_watches_there_is_a_line_at_an_interval_in_the_log_and_no_bar(
    monkeypatch, capsys, caplog, seconds, lines
):
    monkeypatch.setattr(progress, "QUIET_SECONDS", seconds)
    caplog.set_level(logging.INFO)
    with ProgressBar(total=5, initial=2, desc="caching") as bar:
        for _ in range(3):
            bar.update()
    assert len(caplog.records) == lines and capsys.readouterr().err == ""
    assert all(f"caching: {number} of 5" in caplog.messages[number - 3] for number in range(3, 3 + lines))


def test_without_a_total_nothing_is_said_of_what_is_to_go(monkeypatch, caplog):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    with ProgressBar(desc="checking") as bar:
        bar.update()
    assert len(caplog.records) == 1 and "?" not in caplog.messages[0] and "to go" not in caplog.messages[0]


def test_of_several_processes_only_the_first_shows_a_bar(monkeypatch):
    shown = terminal(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    assert list(ProgressBar(range(3))) == [0, 1, 2] and shown.getvalue() == ""
