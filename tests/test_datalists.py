"""Data lists: no patient in two splits, reproducible, and errors that say what was found."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from common.data.datalist_sources import write_manifest
from common.data.datalists import assert_disjoint_patients, radiograph_items
from common.errors import DatasetError

EXPECTED_VAL_SEED_0 = ["03.png", "04.png", "08.png", "10.png", "12.png", "13.png", "15.png"]
TWENTY = [f"{i:02d}.png" for i in range(20)]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "manifest.csv").write_bytes(text.encode(encoding))
    return folder


def listed(folder: Path | str, split: str = "all", val_fraction: float = 0.2, seed: int = 0, **kwargs):
    return radiograph_items(folder, split, val_fraction, seed, **kwargs)


def names(folder: Path, split: str = "all", **kwargs) -> list[str]:
    return [Path(item["image"]).relative_to(folder).as_posix() for item in listed(folder, split, **kwargs)]


def patients(folder: Path, split: str, **kwargs) -> set[str]:
    return {item["patient_id"] for item in listed(folder, split, **kwargs)}


def refused(folder: Path | str, *named: str, **kwargs) -> None:
    """A request is refused with these facts."""
    with pytest.raises(DatasetError) as caught:
        listed(folder, **kwargs)
    assert all(fact in str(caught.value) for fact in named)


def write_headers(folder: Path, patient_of: dict[str, str]) -> None:
    for name, patient in patient_of.items():
        header = pydicom.Dataset()
        header.PatientID = patient
        header.SOPClassUID, header.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.save_as(folder / name, enforce_file_format=True)


def test_lists_every_format_at_any_depth_and_nothing_else(tmp_path):
    good = ["a.PNG", "b/c.jpg", "b/d.nii.gz", "e/f.tif", "g.jpeg", "other/labels/b.png"]
    touch(tmp_path, *good, ".hidden.png", ".cache/x.png", "__MACOSX/a.png", "notes.txt", "DICOMDIR")
    touch(tmp_path, "outputs/reconstruction.png", "made/x.png", "made/run_record.json")
    touch(tmp_path, "labels/final/a.png", "labels/original/a.png", "datastore_v2.json")  # of MONAI Label
    (tmp_path / "b" / "loop").symlink_to(tmp_path)  # a link back into the tree ends
    assert names(tmp_path) == sorted(good)
    assert all(os.path.isabs(item["image"]) for item in listed(tmp_path))


def test_a_link_is_listed_by_its_own_name(tmp_path):
    touch(tmp_path, "store/3f9a", "data/placeholder.png")
    (tmp_path / "data" / "scan.png").symlink_to(tmp_path / "store" / "3f9a")
    assert names(tmp_path / "data") == ["placeholder.png", "scan.png"]


@pytest.mark.parametrize(("name", "level"), [("SOURCE.md", logging.INFO), ("scan.bmp", logging.WARNING)])
def test_texts_beside_the_images_are_no_reason_to_warn(name, level, tmp_path, caplog):
    touch(tmp_path, "a.png", name)
    with caplog.at_level(logging.INFO):
        listed(tmp_path)
    assert [record.levelno for record in caplog.records if "left out" in record.message] == [level]


def test_what_is_left_out_is_counted_by_kind_in_one_line(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.bmp", "deep/c.BMP", "d.webp", "notes", ".hidden")
    (tmp_path / "e.png").symlink_to(tmp_path / "gone.png")
    assert names(tmp_path) == ["a.png"]
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert all(part in line for part in (" 5 other files", "2 .bmp", "1 .webp", "1 no suffix", "1 dangling link"))


def test_every_file_in_one_split_the_fraction_met_on_average_and_added_files_move_nobody(tmp_path):
    touch(tmp_path, *(f"{i:03d}.png" for i in range(1000)))
    before = {split: patients(tmp_path, split) for split in ("train", "val")}
    assert before["train"].isdisjoint(before["val"]) and len(before["train"] | before["val"]) == 1000
    assert 160 <= len(before["val"]) <= 240
    touch(tmp_path, *(f"more/{i:03d}.png" for i in range(50)))
    assert all(before[split] <= patients(tmp_path, split) for split in before)


def test_the_split_is_a_fixed_function_of_the_seed_wherever_the_folder_is(tmp_path):
    for place in ("here", "there/deeper", "with manifest"):
        touch(tmp_path / place, *TWENTY)
        if place.startswith("with"):
            manifest(tmp_path / place, "image\n" + "".join(f"./{name}\n" for name in TWENTY))
        assert names(tmp_path / place, "val") == EXPECTED_VAL_SEED_0  # the same on every machine and Python
    assert names(tmp_path / "here", "val", seed=1) != EXPECTED_VAL_SEED_0


@pytest.mark.parametrize("count", [2, 3, 5])
def test_small_sets_leave_no_split_empty(tmp_path, count):
    touch(tmp_path, *(f"{i}.png" for i in range(count)))
    for seed in range(12):
        for fraction in (0.05, 0.99):
            assert all(patients(tmp_path, split, val_fraction=fraction, seed=seed) for split in ("train", "val"))


def test_a_split_of_unusable_files_gets_another_patient(tmp_path):
    touch(tmp_path, *TWENTY[:6])
    (only_val,) = listed(tmp_path, "val", 0.01)

    def keep(items):
        return [item for item in items if item["image"] != only_val["image"]]

    (val,), train = (listed(tmp_path, split, 0.01, keep=keep) for split in ("val", "train"))
    assert sorted(Path(item["image"]).name for item in [val, only_val, *train]) == TWENTY[:6]
    assert_disjoint_patients(train=train, val=[val])


def test_a_split_column_is_used_as_it_is_and_only_its_files_are_looked_at(tmp_path):
    manifest(tmp_path, "image,split\na.png,Train\nb.png,VAL\nc.png,val\nd.png,test\n")
    assert [len(listed(tmp_path, split, 0.9)) for split in ("train", "val", "test", "all")] == [1, 2, 1, 4]
    seen = []
    (val,) = listed(tmp_path, "val", keep=lambda items: seen.extend(items) or items[1:])
    assert [Path(item["image"]).name for item in (val, *seen)] == ["c.png", "b.png", "c.png"]


def test_a_limit_takes_the_first_and_spares_the_rest_from_being_read(tmp_path):
    touch(tmp_path, *TWENTY[::-1])
    seen = []
    items = listed(tmp_path, "train", limit=3, keep=lambda items: seen.extend(items) or items)
    assert len(items) == 3 and len(seen) <= 9
    assert names(tmp_path, limit=2) == ["00.png", "01.png"]


@pytest.mark.parametrize(
    ("rows", "split", "named"),
    [
        ("a.png,p1,train\nb.png,p2,train\nc.png,p2,val\n", "train", "p2"),
        ("a.png,p1,train\nb.png,p2,test\n", "val", "train (1), test (1)"),
    ],
)
def test_a_split_that_cannot_be_is_an_error(tmp_path, rows, split, named):
    refused(manifest(tmp_path, "image,patient_id,split\n" + rows), named, split=split)


def test_a_pattern_keeps_a_patient_together_and_sees_the_folders_if_it_has_a_slash(tmp_path):
    touch(tmp_path, *(f"scans/p{p}_{view}.png" for p in range(20) for view in ("pa", "lat")))
    train, val = (patients(tmp_path, s, patient_id_pattern=r"^p(\d+)_") for s in ("train", "val"))
    assert train.isdisjoint(val) and train | val == {str(p) for p in range(20)}
    assert patients(tmp_path, "all", patient_id_pattern=r"^(\w+)/") == {"scans"}
    for pattern, named in (("(", "("), ("p", "0 groups"), (r"q(\d)", "40 of 40 files: scans/p0_lat.png")):
        refused(tmp_path, named, patient_id_pattern=pattern)


def test_dicom_headers_say_the_patient(tmp_path):
    write_headers(tmp_path, {"a.dcm": "X1", "b.dcm": "X1"})
    refused(tmp_path, "X1", split="val")  # one patient cannot be split
    write_headers(tmp_path, {"c": "X2", "d.dcm": "", "e.dcm": "Anonymous"})
    (tmp_path / "broken.dcm").write_bytes(b"not dicom at all")
    assert {Path(item["image"]).name: item["patient_id"] for item in listed(tmp_path)} == {
        "a.dcm": "X1", "b.dcm": "X1", "c": "X2", "d.dcm": "d", "e.dcm": "e", "broken.dcm": "broken",
    }  # fmt: skip


def test_passes_columns_on_in_the_manifests_order(tmp_path):
    manifest(tmp_path, 'image,label,patient_id,mask,view\nb.png,2,p2,m/b.png,PA\nno.png,1,p1,,"AP, supine"\n')
    first, second = listed(tmp_path)  # missing images stay for the readability report
    assert first == {
        "image": str(tmp_path / "b.png"), "label": "2", "patient_id": "p2",
        "mask": str(tmp_path / "m/b.png"), "view": "PA",
    }  # fmt: skip
    assert second["view"] == "AP, supine" and "mask" not in second


def test_reads_what_spreadsheets_write(tmp_path):
    manifest(tmp_path, "Image, Patient_ID ,\r\nä.png,p1,\r\n,,\r\n\r\n/abs/b.png,p2,\r\n", encoding="utf-8-sig")
    assert listed(tmp_path) == [
        {"image": str(tmp_path / "ä.png"), "patient_id": "p1"},
        {"image": "/abs/b.png", "patient_id": "p2"},
    ]


@pytest.mark.parametrize("column", ["file", "Filename", "path", "image_path"])
def test_the_image_column_may_have_another_usual_name(tmp_path, column):
    (item,) = listed(manifest(tmp_path, f"label,{column}\n1,a.png\n"))
    assert item["image"] == str(tmp_path / "a.png") and item["label"] == "1"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("picture,label\na.png,1\n", "picture, label"),
        ("path,file\na.png,b.png\n", "path, file"),
        ("image;label\na.png;1\n", "image;label; columns are separated by commas"),
        ("", "no header"),
        ("image\n", "no rows"),
        ("image,label\na.png,1\n,2\n", "line 3: image"),
        ("image,split\na.png,train\nb.png,\n", "line 3: split"),
        ("image,split\na.png,train\nb.png,dev\n", "line 3: split is 'dev'"),
        ("image,patient_id\na.png,\n", "line 2: patient_id"),
        ("image,label\na.png,1\nb.png,1,2\n", "line 3 has 3 cells"),
        ("image\na.png\nb.png\n./a.png\n", "line 4: a.png is already on line 2"),
        ("image,x,x\na.png,1,2\n", "'x'"),
        ("image\nä.png\n", "UTF-8"),
    ],
)
def test_errors_name_what_was_found(tmp_path, text, named):
    refused(manifest(tmp_path, text, encoding="latin-1" if "ä" in text else "utf-8"), named, "manifest.csv")


def test_a_manifest_elsewhere_lists_the_originals(tmp_path):
    data = tmp_path / "data"
    touch(data, "deep/a.png", "b.png", "masks/a.png")
    text = 'image,patient_id,split,mask,"a note, long"\ndeep/a.png,P,train,masks/a.png,"1, 2"\nb.png,Q,val,,\n'
    items = listed(manifest(data, text))
    write_manifest(items, tmp_path / "work" / "manifest.csv")
    assert listed(tmp_path / "work") == items
    assert items[0]["mask"] == str(data / "masks/a.png") and "mask" not in items[1]


@pytest.mark.parametrize("broken", [[], [{"image": ""}], [{"image": "a", "split": "val"}, {"image": "b"}]])
def test_what_no_list_could_read_is_not_written(tmp_path, broken):
    with pytest.raises(DatasetError):
        write_manifest(broken, tmp_path / "manifest.csv")
    assert list(tmp_path.iterdir()) == []


def test_where_keeps_equal_rows_compares_as_text_and_does_not_change_who_is_held_out(tmp_path):
    rows = [f"{i}.png,{'PA' if i % 2 else 'AP'},{i}\n" for i in range(60)]
    manifest(tmp_path, "image,view,label\n" + "".join(rows))
    assert names(tmp_path, where={"view": "PA", "label": 1}) == ["1.png"]
    assert patients(tmp_path, "val", where={"view": "PA"}) < patients(tmp_path, "val")
    for where, named in (({"position": "PA"}, "patient_id, view"), ({"view": "LL"}, "found AP, PA")):
        refused(tmp_path, named, where=where)


@pytest.mark.parametrize(
    ("place", "changes", "named"),
    [
        (None, {}, "empty"),  # which is not the current folder
        ("none", {}, "not exist"),
        ("", {}, ".dcm"),
        ("readme.txt", {}, "is a file"),
        ("data", {"split": "validation"}, "validation"),
        ("data", {"val_fraction": 1.0}, "val_fraction"),
        ("data", {"val_fraction": -0.1}, "val_fraction"),
        ("data", {"limit": 0}, "limit"),
        ("data", {"split": "test"}, "manifest"),
        ("data", {"split": "val", "val_fraction": 0.0}, "val_fraction"),
    ],
)
def test_unusable_folders_and_requests_are_explained(tmp_path, place, changes, named):
    touch(tmp_path, "readme.txt")
    if place == "data":
        touch(tmp_path, "data/a.png", "data/b.png")
    refused("" if place is None else tmp_path / place, named, **changes)
