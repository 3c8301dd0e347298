import csv
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from common.errors import DatasetError, RunError
from common.files import (
    NAME_BYTES,
    atomic_path,
    join_parts,
    locked_folder,
    read_json,
    result_names,
    write_csv,
    write_json,
    write_parts,
)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError("broken")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_what_takes_a_files_place_is_on_disk_before(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    synced, fsync = [], os.fsync

    def noting(number):
        synced.append((os.fstat(number).st_size, (tmp_path / "a").read_text()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", noting)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("quite new")
    assert synced == [(9, "old")] and (tmp_path / "a").read_text() == "quite new"


def test_a_whole_write_replaces_the_file_and_makes_its_folder(tmp_path):
    for text in ("old", "new"):
        with atomic_path(tmp_path / "deep" / "file.txt") as temporary:
            temporary.write_text(text)
    assert (tmp_path / "deep" / "file.txt").read_text() == "new"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_results_of_one_name_in_two_folders_have_two_names(tmp_path):
    names = result_names([str(tmp_path / path) for path in ("a.png", "deep/a.png", "deep/a.dcm")], tmp_path)
    assert names == ["a_png", "deep__a_png", "deep__a_dcm"]
    assert result_names([str(tmp_path.parent / "b.png")], tmp_path) == ["b_png"]


def test_names_of_results_are_unique_bounded_and_harmless(tmp_path):
    paths = ["deep/a.png", "deep__a.png", "=cmd.png", 'quo"te:\n.png', "A.png", "a.png"]
    paths += [f"{'x' * 120}/{'ü' * 100}{number}.png" for number in range(2)]
    names = result_names([str(tmp_path / path) for path in paths], tmp_path)
    assert len({name.casefold() for name in names}) == len(paths)
    assert all(len(name.encode()) <= NAME_BYTES + 9 for name in names)
    assert not any(set('<>:"|?*\\\n/') & set(name) or name.startswith("=") for name in names)
    assert names == result_names([str(tmp_path / path) for path in paths], tmp_path)


def test_a_folder_is_held_by_one_process_and_is_free_and_cleared_when_that_is_killed(tmp_path):
    folder, pipes = tmp_path / "new", {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    program = "import sys; from pathlib import Path; from common.files import locked_folder\n"
    program += "with locked_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=REPOSITORY, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=str(other.pid)), locked_folder(folder):
            raise AssertionError("held twice")
        other.kill()
    (folder / "deep").mkdir()
    (folder / "deep" / ".x.pt.1.partial").touch()  # as `atomic_path` leaves it
    with locked_folder(folder):
        assert not list(folder.rglob("*.partial"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file"), locked_folder(tmp_path / "file"):
        raise AssertionError("a file is no folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_json_comes_back_and_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": [1, None]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [1, None]} and list(path.parent.iterdir()) == [path]


def test_parts_are_small_and_join_to_what_they_were(tmp_path):
    content = bytes(range(250)) * 3
    digests = write_parts(content, tmp_path / "file", 300)
    assert list(digests) == ["file.part00", "file.part01", "file.part02"]
    assert [(tmp_path / name).stat().st_size for name in digests] == [300, 300, 150]
    join_parts(tmp_path, digests, tmp_path / "new" / "joined")
    assert (tmp_path / "new" / "joined").read_bytes() == content


def test_a_part_that_is_damaged_leaves_the_old_file(tmp_path):
    digests = write_parts(b"0123456789", tmp_path / "file", 5)
    (tmp_path / "file.part01").write_bytes(b"56x89")
    (tmp_path / "joined").write_text("old")
    with pytest.raises(DatasetError, match="part01"):
        join_parts(tmp_path, digests, tmp_path / "joined")
    assert (tmp_path / "joined").read_text() == "old"


def test_no_source_of_a_table_is_a_formula_and_all_are_the_same_files(tmp_path):
    sources = ["=cmd|' /C calc'!A0.png", "+1.png", "-1.png", "@SUM.png", "a=b.png", "/deep/=x.png"]
    write_csv(tmp_path / "areas.csv", ("image", "source", "px"), [(-1, source, -2) for source in sources])
    with (tmp_path / "areas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [os.path.normpath(row["source"]) for row in rows] == sources
    assert all(row["source"][0] in "./a" and row["px"] == "-2" for row in rows)
