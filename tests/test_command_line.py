import pytest

from common.command_line import run_command


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


def test_true_and_false_are_no_text():
    calls = []
    run_command(lambda quick, deep=True: calls.append((quick, deep)), ["true", "--deep", "false"])
    assert calls == [(True, False)]
