import io
import logging
import sys

import pytest

from common import progress
from common.progress import MAX_COLUMNS, ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Stands for a terminal, to which the log goes too."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    handler = logging.StreamHandler(sys.stderr)
    logging.root.addHandler(handler)
    yield sys.stderr
    logging.root.removeHandler(handler)


def test_a_bar_fits_80_columns_and_lines_of_the_log_stand_above_it(terminal):
    handlers = list(logging.root.handlers)
    with ProgressBar(total=4, desc="a long description " * 6, mininterval=0) as bar:
        for _ in range(4):
            bar.set_postfix_str("a loss of 0.123456789", refresh=False)
            bar.update()
            logging.getLogger("common").warning("told")
    assert logging.root.handlers == handlers
    drawn = terminal.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, drawn)) <= MAX_COLUMNS
    assert drawn.count("told") == 4  # each on a line of its own
    assert any("4/4" in line or line.startswith("a long") for line in drawn)


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


def test_of_several_processes_only_the_first_shows_a_bar(terminal, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert list(ProgressBar(range(3))) == [0, 1, 2] and terminal.getvalue() == ""
