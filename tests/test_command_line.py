from datetime import timedelta

import pytest

from common import command_line
from common.command_line import run_command
from common.errors import SettingsError

NAMES = ["2024", "1e3", "0010", "1_0", "a,b", "[set1]", "{a}", "None_", "0x10", "'a'"]


def make_command(calls):
    def command(source: str, *, size: int = 1) -> None:
        calls.append((source, size))

    return command


def test_arguments_arrive():
    calls = []
    run_command(make_command(calls), ["here", "--size", "3"])
    assert calls == [("here", 3)]


@pytest.mark.parametrize("words", [["here", "--sice", "3"], [], ["here", "there"]])
def test_a_mistake_ends_before_anything_is_done(words, capsys):
    calls = []
    with pytest.raises(SystemExit) as caught:
        run_command(make_command(calls), words)
    assert caught.value.code == 2 and calls == []


def test_a_long_command_says_what_took_how_long_and_where_its_results_are(monkeypatch, caplog):
    def command(output_dir: str) -> None:
        pass

    run_command(command, ["--output_dir", "there"])
    assert not caplog.records
    monkeypatch.setattr(command_line, "TOLD", timedelta(seconds=-1))
    run_command(command, ["--output_dir", "there"])
    assert len(caplog.records) == 1 and "0:00:00" in caplog.text and "there" in caplog.text


def test_true_and_false_are_no_text():
    calls = []
    run_command(lambda quick, deep=True: calls.append((quick, deep)), ["true", "--deep", "false"])
    assert calls == [(True, False)]


@pytest.mark.parametrize("words", [[name] for name in NAMES] + [["--source", "1e3"], ["--source=1e3"]], ids=str)
def test_names_that_look_like_numbers_or_lists_are_names(words):
    calls = []
    run_command(make_command(calls), words)
    assert calls == [(words[-1].removeprefix("--source="), 1)]


def test_names_stay_names_wherever_they_stand():
    def command(first: str, *others: str, last: "str | None" = "", more: "str | None" = "a", count: int = 0) -> None:
        calls.append((first, others, last, more, count))

    calls = []
    run_command(command, [*NAMES, "--last", "7", "--more", "None", "--count", "8"])
    assert calls == [(NAMES[0], tuple(NAMES[1:]), "7", None, 8)]


@pytest.mark.parametrize("words", [[""], ["None"], ["--source"], ["--source", ""], ["--source="]], ids=str)
def test_an_argument_that_was_left_empty_is_refused(words):
    calls = []
    with pytest.raises(SettingsError):
        run_command(make_command(calls), words)
    assert calls == []
