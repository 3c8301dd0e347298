"""Folders of results: what every such command does alike, tried with a job that copies text."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import draw_radiographs
from trainings import Killed

from common.data.datalists import radiograph_items
from common.data.dataset import RadiographDataset
from common.data.readability import readable_radiographs
from common.errors import CheckpointMismatchError, DatasetError, RunError, SettingsError, UserError
from common.files import JOB_RECORD, locked_folder
from common.pipelines.folder_job import FileJob, FolderJob
from common.pipelines.job_log import LOG_NAME, Item


class Copies(FolderJob):
    """Writes each input's text in capitals; an input whose text is an error's name fails with it."""

    verb, unit = "copied", "text"

    def __init__(self, paths, output_dir, batch_size=1, killed_at=None, **settings):
        super().__init__(output_dir, settings, batch_size)
        self.paths, self.killed_at, self.computed = paths, killed_at, []

    def items(self):
        return [Item(path.stem, str(path)) for path in self.paths]

    def result(self, item):
        return f"{item.name}.out"

    def compute(self, items):
        texts = [Path(item.source).read_text() for item in items]
        if "too much" in texts and len(items) > 1:
            raise torch.OutOfMemoryError
        if "bad" in texts:
            raise UserError("found bad")
        self.computed += [item.name for item in items]
        return texts

    def write(self, item, output):
        if item.name == self.killed_at:
            raise Killed
        (self.output_dir / self.result(item)).write_text(output.upper())
        return {"name": item.name, "text": output, **({"problem": "half of it"} if output == "half" else {})}

    def tabulate(self, rows):
        (self.output_dir / "table.txt").write_text("\n".join(row["text"] for row in rows))


class Keeps(Copies):
    keeps_folder = keeps_rows = True


@pytest.fixture
def texts(tmp_path):
    """A function that writes inputs a, b, c … with these texts."""

    def write(*contents):
        paths = [tmp_path / f"{chr(97 + number)}.txt" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content)
        return paths

    return write


def record(folder):
    return json.loads((folder / JOB_RECORD).read_text())


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_all_are_made_in_order_with_a_table_a_record_and_a_closing_line(texts, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    job = Copies(texts("one", "two", "three"), tmp_path / "out", batch_size=2, size=7)
    assert [row["text"] for row in job.run()] == ["one", "two", "three"] and job.computed == ["a", "b", "c"]
    assert (tmp_path / "out" / "b.out").read_text() == "TWO"
    assert (tmp_path / "out" / "table.txt").read_text() == "one\ntwo\nthree"
    found = record(tmp_path / "out")
    assert found["settings"] == {"size": 7} and found["runs"][0]["done"] == 3 and found["runs"][0]["failures"] == {}
    assert "3 of 3 texts copied" in caplog.text and str(tmp_path / "out") in caplog.text


def test_one_that_fails_stops_no_other_and_is_tried_again(texts, tmp_path):
    paths = texts("one", "bad", "half", "four")
    job = Copies(paths, tmp_path / "out", batch_size=4)
    with pytest.raises(RunError, match=r"b\.txt: found bad.*c\.txt: half of it"):
        job.run()
    assert (tmp_path / "out" / "table.txt").read_text() == "one\nhalf\nfour"  # what is there of c has its row
    assert record(tmp_path / "out")["runs"][0]["done"] == 3
    for path in paths[1:3]:
        path.write_text("good")
    again = Copies(paths, tmp_path / "out")
    assert len(again.run()) == 4 and again.computed == ["b", "c"]


@pytest.mark.parametrize("killed_at", ["a", "c", "d"])
def test_a_killed_run_goes_on_where_it_was(texts, tmp_path, killed_at):
    paths = texts("one", "two", "three", "four")
    with pytest.raises(Killed):
        Copies(paths, tmp_path / "out", batch_size=2, killed_at=killed_at).run()
    (tmp_path / "out" / ".x.1.partial").touch()  # as `atomic_path` leaves it
    done = ord(killed_at) - ord("a") & ~1  # batches are noted whole
    again = Copies(paths, tmp_path / "out", batch_size=2)
    assert [row["text"] for row in again.run()] == ["one", "two", "three", "four"]
    assert again.computed == ["a", "b", "c", "d"][done:]
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_log_cut_anywhere_is_gone_on_from(texts, tmp_path):
    paths = texts("one", "two")
    Copies(paths, tmp_path / "out").run()
    whole = (tmp_path / "out" / LOG_NAME).read_bytes()
    first = whole.index(b"\n") + 1
    for size, made in [(0, "ab"), (first - 1, "ab"), (first, "b"), (first + 9, "b"), (len(whole) - 1, "b")]:
        (tmp_path / "out" / LOG_NAME).write_bytes(whole[:size])
        again = Copies(paths, tmp_path / "out")
        assert len(again.run()) == 2 and again.computed == list(made), size
        assert len((tmp_path / "out" / LOG_NAME).read_bytes().splitlines()) == 2


def test_what_changed_or_was_lost_is_made_again_and_nothing_else(texts, tmp_path):
    paths = texts("one", "two", "three")
    Copies(paths, tmp_path / "out").run()
    job = Copies(paths, tmp_path / "out")
    job.run()
    assert job.computed == []
    paths[0].write_text("changed")
    os.utime(paths[0], ns=(1, 1))
    (tmp_path / "out" / "c.out").unlink()
    job.run()
    assert job.computed == ["a", "c"] and (tmp_path / "out" / "a.out").read_text() == "CHANGED"


def test_other_settings_make_all_again_or_are_refused_by_name(texts, tmp_path):
    paths = texts("one", "two")
    for kind in (Copies, Keeps):
        kind(paths, tmp_path / kind.__name__, size=1).run()
    again = Copies(paths, tmp_path / "Copies", size=2)
    again.run()
    assert again.computed == ["a", "b"]
    with pytest.raises(CheckpointMismatchError, match="size: 1 there, 2 now"):
        Keeps(paths, tmp_path / "Keeps", size=2).run()


def test_rows_of_other_items_stay_where_the_job_keeps_them(texts, tmp_path):
    paths = texts("one", "two")
    for kind in (Copies, Keeps):
        kind(paths, tmp_path / kind.__name__).run()
        kind(paths[1:], tmp_path / kind.__name__).run()
    assert (tmp_path / "Copies" / "table.txt").read_text() == "two"
    assert (tmp_path / "Keeps" / "table.txt").read_text() == "two\none"


def test_too_little_memory_says_what_to_do(texts, tmp_path):
    with pytest.raises(RunError, match="batch_size"):
        Copies(texts("one", "too much"), tmp_path / "out", batch_size=2).run()


# ---- the folder ----------------------------------------------------------------------------------------------------


def test_two_do_not_work_in_one_folder(texts, tmp_path):
    with locked_folder(tmp_path / "out"), pytest.raises(RunError):
        Copies(texts("one"), tmp_path / "out").run()


def test_a_folder_that_goes_away_is_told_so(texts, tmp_path):
    class Deleted(Copies):
        def write(self, item, output):
            row = super().write(item, output)
            (self.output_dir / JOB_RECORD).unlink()
            return row

    with pytest.raises(RunError, match="deleted"):
        Deleted(texts("one"), tmp_path / "out").run()


def test_a_damaged_log_is_named(texts, tmp_path):
    Copies(texts("one"), tmp_path / "out").run()
    (tmp_path / "out" / LOG_NAME).write_text("no json\n")
    with pytest.raises(CheckpointMismatchError, match=LOG_NAME):
        Copies(texts("one"), tmp_path / "out").run()


def test_a_folder_that_cannot_be_written_to_is_told_so(texts, tmp_path):
    items = texts("one")
    (tmp_path / "read_only").mkdir(mode=0o500)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)  # to root permissions mean nothing
        with pytest.raises(RunError, match="read_only"):
            Copies(items, tmp_path / "read_only" / "out").run()
    finally:
        os.seteuid(user)


# ---- files of a data set -------------------------------------------------------------------------------------------


class FileCopies(FileJob):
    """Copies files."""

    def __init__(self, paths, dataset_dir, output_dir):
        pipeline = SimpleNamespace(network=torch.nn.Identity(), amp=False, typical=None)
        dataset = RadiographDataset([{"image": path} for path in paths], None)
        super().__init__(pipeline, dataset, str(dataset_dir), str(output_dir), {}, 1, 0)

    def result(self, item):
        return f"{item.name}.png"

    def compute(self, items):
        return [Path(item.source).read_bytes() for item in items]

    def write(self, item, output):
        (self.output_dir / self.result(item)).write_bytes(output)
        return {"source": item.source}


def test_results_inside_the_data_are_no_data_of_the_next_run(tmp_path):
    draw_radiographs(tmp_path / "data", 2, 16)
    for _ in range(2):
        paths = [item["image"] for item in radiograph_items(tmp_path / "data", "all", 0.0, 0)]
        assert len(FileCopies(paths, tmp_path / "data", tmp_path / "data" / "results").run()) == 2
    with pytest.raises(SettingsError):
        FileCopies(paths, tmp_path / "data", tmp_path / "data")


def test_results_of_links_that_leave_the_data_have_the_names_of_the_links(tmp_path):
    draw_radiographs(tmp_path / "store", 2, 16)
    (tmp_path / "data").mkdir()
    for name in ("left", "right", "again"):  # as git-annex and DVC keep them
        stored = tmp_path / "store" / f"phantom_{int(name == 'right')}.png"
        (tmp_path / "data" / f"{name}.png").symlink_to(stored)
    paths = [item["image"] for item in radiograph_items(tmp_path / "data", "all", 0.0, 0)]
    rows = FileCopies(paths, tmp_path / "data", tmp_path / "out").run()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        f"{name}_png.png" for name in ("again", "left", "right")
    ]
    assert [row["source"] for row in rows] == [str(tmp_path / "data" / f"{n}.png") for n in ("again", "left", "right")]


def test_files_that_were_left_out_make_the_run_fail_at_its_end(tmp_path):
    draw_radiographs(tmp_path / "data", 1, 16)
    (tmp_path / "data" / "broken.png").write_text("no picture")
    items = readable_radiographs(tmp_path / "data", "all", 0.0, 0, tmp_path / "out", 1.0)
    with pytest.raises(DatasetError):
        FileCopies([item["image"] for item in items], tmp_path / "data", tmp_path / "out").run()
    assert (tmp_path / "out" / "phantom_0_png.png").is_file()
