"""What a command is told and says: arguments, errors, progress, and where figures come from."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import common
from common import command_line, progress
from common.command_line import run_command
from common.errors import DatasetError, SettingsError, UserError, root_user_error
from common.progress import MAX_COLUMNS, ProgressBar
from common.provenance import git_state, provenance

# ---- arguments -------------------------------------------------------------------------------------------------------


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
    def command(first: str, *others: str, last: str | None = "", more: str | None = "a", count: int = 0) -> None:
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


# ---- errors ----------------------------------------------------------------------------------------------------------


def chained(*errors):
    """Raise the first, each next one from the one before; return the last."""
    caught = None
    for error in errors:
        try:
            raise error from caught
        except Exception as raised:
            caught = raised
    return caught


def test_the_users_error_is_found_below_monais_wrappers():
    inner = DatasetError("no radiographs")
    assert root_user_error(chained(inner, KeyError("x"), RuntimeError("Failed to instantiate component"))) is inner
    assert root_user_error(chained(KeyError("x"), RuntimeError("y"))) is None
    assert root_user_error(None) is None


@pytest.mark.parametrize(("inner", "has_traceback"), [("UserError('mend this')", False), ("KeyError('a bug')", True)])
def test_a_process_ends_with_the_message_and_a_bug_with_its_traceback(inner, has_traceback):
    program = f"""
from common.errors import UserError, end_with_user_errors
end_with_user_errors()
try:
    raise {inner}
except Exception as error:
    raise RuntimeError("Failed to instantiate component") from error
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == has_traceback
    if not has_traceback:
        assert done.stderr == "UserError: mend this\n"


@pytest.mark.parametrize(
    ("act", "named"),
    [
        ("pathlib.Path('big').write_bytes(bytes(9000))", "File too large"),
        ("save_weights(torch.nn.Linear(60, 60), 'big.pt')", "File too large"),
        ("pathlib.Path('file/inside').write_text('')", "Not a directory"),
        ("os.chmod('.', 0o500); os.geteuid() or os.seteuid(65534); os.mkdir('new')", "Permission denied"),
        ("list(DataLoader(Dying(), num_workers=1))", "--num_workers 0"),
    ],
)
def test_a_full_disk_and_other_faults_of_the_machine_are_one_sentence(tmp_path, act, named):
    (tmp_path / "file").touch()
    program = f"""
import os, pathlib, resource, signal, torch
from torch.utils.data import DataLoader
from common.errors import end_with_user_errors
from common.networks.weights import save_weights
class Dying:
    def __len__(self): return 1
    def __getitem__(self, key): os.kill(os.getpid(), signal.SIGBUS)  # as the kernel does where shared memory is full
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
end_with_user_errors()
{act}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and named in done.stderr and len(done.stderr) < 700
    assert [path.name for path in tmp_path.glob(".*.partial")] == []


def test_our_errors_are_user_errors():
    assert issubclass(DatasetError, UserError) and issubclass(DatasetError, ValueError)


# ---- progress --------------------------------------------------------------------------------------------------------


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


# ---- provenance ------------------------------------------------------------------------------------------------------


def test_figures_say_where_they_come_from():
    found = provenance(torch.device("cpu"))
    assert set(found) == {"command", "date", "device", "versions", "git"} and found["device"] == "cpu"
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["common"] == common.__version__
    assert found["git"] == git_state()


def test_git_state(tmp_path: Path) -> None:
    """Commit and changes of a checkout; None outside, for untracked code inside, and without git."""
    package = tmp_path / "repository" / "common"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert git_state(package) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.hooksPath=/dev/null"]
        command = ["git", *identity, "-C", str(package), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "..")
    assert git_state(package) is None, "untracked"
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert git_state(package) == {"commit": git("rev-parse", "HEAD"), "is_dirty": False}
    results = package.parent / "bundles" / "tiny" / "docs" / "results"
    results.mkdir(parents=True)
    (results / "figures.json").write_text("{}")
    assert git_state(package)["is_dirty"] is False, "a result"
    (results.parents[1] / "configs.yaml").write_text("")
    assert git_state(package)["is_dirty"] is True, "not a result"
    (results.parents[1] / "configs.yaml").unlink()
    (package / "__init__.py").write_text("changed = 1\n")
    assert git_state(package) == {"commit": git("rev-parse", "HEAD"), "is_dirty": True}


def test_a_missing_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() is None


def test_the_command_is_what_one_would_type(tmp_path):
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__main__.py").write_text(
        "from common.provenance import command_line\nprint(command_line())\n"
    )
    command = [sys.executable, "-m", "tool", "--config_file", "['a','b']"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == """python -m tool --config_file '['"'"'a'"'"','"'"'b'"'"']'"""
