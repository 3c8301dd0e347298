"""The readability scan: bad files are skipped and reported, good ones remembered, too many bad ones stop."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import run_ranks
from PIL import Image

from common.data.readability import readable_items, readable_radiographs
from common.errors import DatasetError


def write_images(folder: Path, count: int) -> list[dict[str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    items = []
    for index in range(count):
        path = folder / f"good{index:02d}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(path)
        items.append({"image": str(path), "patient_id": path.stem})
    return items


def write_bad(folder: Path) -> list[dict[str, str]]:
    """A text named .png, a truncated PNG, an empty file, text named .dcm, and one that is not there."""
    (folder / "text.png").write_text("hello")
    (folder / "cut.png").write_bytes((folder / "good00.png").read_bytes()[:200])
    (folder / "empty.png").touch()
    (folder / "text.dcm").write_text("hello" * 100)
    return [{"image": str(folder / name)} for name in ("text.png", "cut.png", "empty.png", "text.dcm", "gone.png")]


def spoil_unnoticed(path: str) -> None:
    """Make a file unreadable without a change of size or modification time."""
    status = os.stat(path)
    Path(path).write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_mixed_folder_keeps_the_good_and_reports_the_bad(tmp_path, caplog):
    good, bad = write_images(tmp_path / "data", 6), write_bad(tmp_path / "data")
    kept = readable_items(good, tmp_path / "out")
    assert kept == good and kept[0] is not good[0]
    assert not caplog.records and rows(tmp_path / "out" / "skipped.csv") == []
    mixed = [bad[0], *good[:3], *bad[1:], *good[3:]]
    with caplog.at_level(logging.WARNING):
        kept = readable_items(mixed, tmp_path / "out", name="train", max_unreadable_share=0.5)
    assert kept == good
    assert "5 of 11 train" in caplog.text and "text.png" in caplog.text
    report = rows(tmp_path / "out" / "skipped.csv")
    assert [row["image"] for row in report] == [item["image"] for item in bad]
    assert all(row["name"] == "train" and row["found"] and row["expected"] for row in report)


def test_too_many_bad_files_stop_with_the_report_written(tmp_path):
    items = write_images(tmp_path / "data", 4) + write_bad(tmp_path / "data")[:2]
    with pytest.raises(DatasetError) as caught:
        readable_items(items, tmp_path / "out", name="val", max_unreadable_share=0.25)
    report = tmp_path / "out" / "skipped.csv"
    assert all(part in str(caught.value) for part in ("2 of 6 val", "33.3", "text.png", str(report)))
    assert len(rows(report)) == 2
    assert len(readable_items(items, tmp_path / "out", name="val", max_unreadable_share=0.34)) == 4
    assert len(readable_items(items[2:], tmp_path / "out", max_unreadable_share=0.5)) == 2  # just as many as may be
    for none_left in (items[4:], []):
        with pytest.raises(DatasetError):
            readable_items(none_left, tmp_path / "out", max_unreadable_share=1.0)


def test_only_changed_and_repaired_files_are_read_again(tmp_path):
    good = write_images(tmp_path / "data", 4)
    spare = Path(good[0]["image"]).read_bytes()
    readable_items(good, tmp_path / "out", name="train")
    spoil_unnoticed(good[1]["image"])
    assert readable_items(good, tmp_path / "out", name="val") == good  # whatever the name: a file may change its split
    Path(good[0]["image"]).write_text("damaged since")
    assert readable_items(good, tmp_path / "out", max_unreadable_share=0.5) == good[1:]
    Path(good[0]["image"]).write_bytes(spare)
    assert readable_items(good, tmp_path / "out") == good
    assert rows(tmp_path / "out" / "skipped.csv") == []


def test_reports_of_the_other_split_survive(tmp_path):
    good, bad = write_images(tmp_path / "data", 4), write_bad(tmp_path / "data")
    for _ in range(2):
        readable_items(good[:2] + bad[:1], tmp_path / "out", name="train", max_unreadable_share=0.5)
        readable_items(good[2:] + bad[1:2], tmp_path / "out", name="val", max_unreadable_share=0.5)
    assert sorted(row["name"] for row in rows(tmp_path / "out" / "skipped.csv")) == ["train", "val"]


def test_a_damaged_index_only_costs_time(tmp_path):
    good = write_images(tmp_path / "data", 2)
    (tmp_path / "out").mkdir()
    for damage in (b"", b"image,size,mtime_ns\n/a.png,12", b"\xff\x00\n", b"image,size,mtime_ns\na,b,c\n"):
        (tmp_path / "out" / "readable.csv").write_bytes(damage)
        assert readable_items(good, tmp_path / "out") == good


@pytest.mark.parametrize("keys", [("image",), ("image", "mask")])
def test_masks_have_to_exist_and_are_decoded_where_asked_for(tmp_path, keys):
    good = write_images(tmp_path / "data", 3)
    (tmp_path / "data" / "mask.png").write_text("never decoded")
    good[0]["mask"] = str(tmp_path / "data" / "mask.png")
    good[1]["mask"] = str(tmp_path / "data" / "no_mask.png")
    kept = readable_items(good, tmp_path / "out", max_unreadable_share=0.7, keys=keys)
    assert kept == ([good[0], good[2]] if keys == ("image",) else [good[2]])
    assert rows(tmp_path / "out" / "skipped.csv")[-1]["found"] == "no such file"


def test_a_manifest_row_without_file_is_skipped_and_named(tmp_path):
    write_images(tmp_path, 3)
    (tmp_path / "manifest.csv").write_text("image\ngood00.png\ntypo.png\ngood01.png\n")
    assert len(readable_radiographs(tmp_path, "all", 0, 0, tmp_path / "out", 0.4)) == 2
    assert rows(tmp_path / "out" / "skipped.csv")[0]["image"].endswith("typo.png")


@pytest.mark.slow
def test_a_killed_scan_goes_on_where_it_was(tmp_path):
    items = write_images(tmp_path / "data", 60)
    index = tmp_path / "out" / "readable.csv"
    program = (
        "import sys; from common.data import readability\n"
        "readability.SAVE_EVERY_S = 0\n"
        "readability.readable_radiographs(sys.argv[1], 'all', 0, 0, sys.argv[2])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "data"), str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 60
    while not (index.exists() and rows(index)) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = {row["image"] for row in rows(index)}
    assert known
    for path in known:
        spoil_unnoticed(path)  # read again, these would be skipped
    assert readable_items(items, tmp_path / "out") == items


def test_two_processes_agree_and_only_the_first_writes(tmp_path):
    items = write_images(tmp_path / "data", 3) + write_bad(tmp_path / "data")[:1]

    def scan(rank):
        for share in (0.5, 0.1):
            try:
                kept = readable_items(items, tmp_path / f"out{rank}", max_unreadable_share=share)
                outcome = ",".join(Path(item["image"]).stem for item in kept)
            except DatasetError as error:
                outcome = str(error)
            (tmp_path / f"outcome{rank}_{share}").write_text(outcome)

    run_ranks(scan, 2, tmp_path)
    (one, other), (refused, too) = (
        [(tmp_path / f"outcome{rank}_{share}").read_text() for rank in range(2)] for share in (0.5, 0.1)
    )
    assert one == other == "good00,good01,good02" and refused == too and "1 of 4" in refused
    assert (tmp_path / "out0").exists() and not (tmp_path / "out1").exists()
