"""One side of a split: no patient and no picture on two sides, who moves, and the report of it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from common.data.datalist_sources import write_manifest
from common.data.datalists import radiograph_items
from common.data.duplicates import find_duplicates
from common.data.one_side import one_side, write_duplicates
from common.data.phantom import draw_chest_phantom
from common.errors import DatasetError


def items_of(*rows: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"image": image, "patient_id": patient, "split": split} for image, patient, split in rows]


def splits(items) -> list[str]:
    return [item["split"] for item in items]


def test_a_copy_of_a_training_image_leaves_validation_and_its_patient_with_it():
    items = items_of(("a", "P", "train"), ("b", "Q", "val"), ("c", "Q", "val"), ("d", "R", "val"), ("e", "S", "test"))
    placed, moves = one_side(items, [[0, 1]])
    assert splits(placed) == ["train", "train", "train", "val", "test"]
    assert [(move.image, move.before, move.after) for move in moves] == [("b", "val", "train"), ("c", "val", "train")]
    assert all("a" in move.why for move in moves)
    assert splits(items)[1] == "val"  # the given ones stay as they are
    placed, moves = one_side(items, [[1, 3]])  # on one side
    assert placed == items and moves == []
    with pytest.raises(DatasetError):
        one_side([*items, {"image": "f", "patient_id": "T"}], [])


def test_links_reach_through_patients_and_groups():
    items = items_of(("a", "P", "train"), ("b", "P", "train"), ("c", "Q", "val"), ("d", "Q", "val"), ("e", "R", "test"))
    placed, _ = one_side(items, [[1, 2], [3, 4]])
    assert splits(placed) == ["train"] * 5
    for item in items:
        item["group"] = "" if item["image"] == "a" else item["image"].replace("e", "d")
    placed, moves = one_side(items, [])
    assert splits(placed) == ["train"] * 5 and len(moves) == 3


def test_without_a_split_patients_stay_where_the_data_list_puts_them_and_copies_join(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.png").touch()
    items = radiograph_items(tmp_path, "all", 0.3, 0)
    listed = {item["image"]: split for split in ("train", "val") for item in radiograph_items(tmp_path, split, 0.3, 0)}
    placed, moves = one_side(items, [], 0.3)
    assert {item["image"]: item["split"] for item in placed} == listed and moves == []
    groups = [[0, 39], [39, 5, 6], [10, 11], [20, 21], [30, 31]]
    placed, _ = one_side(items, groups, 0.3)
    assert set(splits(placed)) == {"train", "val"}
    assert all(len({placed[index]["split"] for index in group}) == 1 for group in groups)
    assert sum(item["split"] != listed[item["image"]] for item in placed) <= 6  # only those that were joined


def test_from_a_folder_to_a_clean_manifest_and_its_report(tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    drawn = [(draw_chest_phantom(96, 96, seed)[0].numpy() * 255).round().astype(np.uint8) for seed in (0, 1, 2, 0)]
    for name, pixels in zip("abcd", drawn, strict=True):
        Image.fromarray(pixels if name != "d" else 255 - pixels).save(data / f"{name}.png")
    (data / "manifest.csv").write_text(
        "image,patient_id,split,label\na.png,P,train,x\nb.png,Q,train,\nc.png,R,val,y\nd.png,S,val,z\n"
    )
    items = radiograph_items(data, "all", 0.2, 0)
    found = find_duplicates(items, progress=False)
    placed, moves = one_side(items, found.groups())
    write_duplicates(found, items, moves, work)
    write_manifest(placed, work / "manifest.csv")
    with (work / "duplicates.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["image"], row["other"]) == (str(data / "a.png"), str(data / "d.png"))
    assert (row["kind"], row["patient_id"], row["other_patient_id"]) == ("inverted copy", "P", "S")
    assert (row["split"], row["other_split"], row["action"]) == ("train", "val", "moved to train")
    assert row["hash_distance"] == "0" and float(row["correlation"]) > 0.98
    with (work / "moved.csv").open(newline="") as file:
        assert [(line["image"], line["before"], line["after"]) for line in csv.DictReader(file)] == [
            (str(data / "d.png"), "val", "train")
        ]
    with Image.open(work / "duplicates.png") as sheet:
        assert sheet.width > 2 * 192
    assert [item["label"] for item in radiograph_items(work, "train", 0.2, 0)] == ["x", "", "z"]
    assert [item["image"] for item in radiograph_items(work, "val", 0.2, 0)] == [str(data / "c.png")]
    assert sorted(path.name for path in data.iterdir()) == ["a.png", "b.png", "c.png", "d.png", "manifest.csv"]


def test_no_duplicates_leave_empty_tables_and_no_sheet(tmp_path):
    Image.fromarray((draw_chest_phantom(96, 96, 0)[0].numpy() * 255).astype(np.uint8)).save(tmp_path / "a.png")
    items = radiograph_items(tmp_path, "all", 0, 0)
    work = tmp_path / "work"
    write_duplicates(find_duplicates(items, progress=False), items, [], work)
    assert sorted(path.name for path in work.iterdir()) == ["duplicates.csv", "moved.csv"]
    assert len((work / "duplicates.csv").read_text().splitlines()) == 1
