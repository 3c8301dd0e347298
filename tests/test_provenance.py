"""Figures say which command, commit and versions gave them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import common
from common.provenance import git_state, provenance


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
