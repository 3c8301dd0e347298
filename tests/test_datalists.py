"""Data lists: no patient in two splits, reproducible, and errors that say what was found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from common.data.datalist_sources import write_manifest
from common.data.datalists import assert_disjoint_patients, radiograph_items
from common.errors import DatasetError

SPLITS = ("train", "val", "test")
EXPECTED_VAL_SEED_0 = ["03.png", "04.png", "08.png", "10.png", "12.png", "13.png", "15.png"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "manifest.csv").write_bytes(text.encode(encoding))
    return folder


def names(items: list[dict[str, str]], folder: Path) -> list[str]:
    return [Path(item["image"]).relative_to(folder).as_posix() for item in items]


def patients(folder: Path, split: str, **kwargs) -> set[str]:
    arguments = {"val_fraction": 0.2, "seed": 0, **kwargs}
    return {item["patient_id"] for item in radiograph_items(folder, split, **arguments)}


def write_header(path: Path, patient_id: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = pydicom.Dataset()
    header.PatientID = patient_id
    header.SOPClassUID, header.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)


class TestKeep:
    def test_a_split_of_unusable_files_gets_another_patient(self, tmp_path):
        touch(tmp_path, *(f"{number}.png" for number in range(6)))
        (only_val,) = radiograph_items(tmp_path, "val", 0.01, 0)

        def keep(items):
            return [item for item in items if item["image"] != only_val["image"]]

        (val,) = radiograph_items(tmp_path, "val", 0.01, 0, keep=keep)
        train = radiograph_items(tmp_path, "train", 0.01, 0, keep=keep)
        assert val["image"] != only_val["image"]
        assert {item["image"] for item in [val, only_val, *train]} == {str(tmp_path / f"{n}.png") for n in range(6)}
        assert len(train) == 4
        assert_disjoint_patients(train=train, val=[val])

    def test_with_a_split_column_only_the_split_asked_for_is_looked_at(self, tmp_path):
        manifest(tmp_path, "image,split\na.png,train\nb.png,val\nc.png,val\n")
        seen = []

        def keep(items):
            seen.extend(item["image"] for item in items)
            return items[1:]

        (val,) = radiograph_items(tmp_path, "val", 0.2, 0, keep=keep)
        assert val["image"] == str(tmp_path / "c.png")
        assert seen == [str(tmp_path / "b.png"), str(tmp_path / "c.png")]

    def test_a_limit_spares_the_rest_from_being_read(self, tmp_path):
        touch(tmp_path, *(f"{number:02d}.png" for number in range(40)))
        seen = []
        items = radiograph_items(tmp_path, "train", 0.2, 0, limit=3, keep=lambda items: seen.extend(items) or items)
        assert len(items) == 3 and len(seen) <= 9


class TestFolder:
    def test_lists_every_format_at_any_depth_and_nothing_else(self, tmp_path):
        good = ["a.PNG", "b/c.jpg", "b/d.nii.gz", "e/f.tif", "g.jpeg"]
        touch(tmp_path, *good, ".hidden.png", ".cache/x.png", "__MACOSX/a.png", "notes.txt", "DICOMDIR")
        touch(tmp_path, "outputs/reconstruction.png")
        items = radiograph_items(tmp_path, "all", val_fraction=0.2, seed=0)
        assert names(items, tmp_path) == sorted(good)
        assert all(os.path.isabs(item["image"]) for item in items)

    def test_a_link_back_into_the_tree_ends(self, tmp_path):
        touch(tmp_path, "a/x.png")
        (tmp_path / "a" / "loop").symlink_to(tmp_path)
        assert len(radiograph_items(tmp_path, "all", val_fraction=0, seed=0)) == 1

    def test_every_file_in_exactly_one_split(self, tmp_path):
        touch(tmp_path, *(f"{i:03d}.png" for i in range(100)))
        found = [n for s in SPLITS for n in names(radiograph_items(tmp_path, s, 0.2, 3, test_fraction=0.1), tmp_path)]
        assert sorted(found) == [f"{i:03d}.png" for i in range(100)]

    def test_fractions_are_met_on_average(self, tmp_path):
        touch(tmp_path, *(f"{i}.png" for i in range(1000)))
        assert 160 <= len(radiograph_items(tmp_path, "val", 0.2, 0)) <= 240
        assert 70 <= len(radiograph_items(tmp_path, "test", 0.2, 0, test_fraction=0.1)) <= 130

    def test_the_split_is_a_fixed_function_of_the_seed(self, tmp_path):
        touch(tmp_path, *(f"{i:02d}.png" for i in range(20)))
        first = radiograph_items(tmp_path, "val", 0.2, seed=0)
        assert first == radiograph_items(tmp_path, "val", 0.2, seed=0)
        assert names(first, tmp_path) == EXPECTED_VAL_SEED_0  # the same on every machine and Python
        assert first != radiograph_items(tmp_path, "val", 0.2, seed=1)

    def test_moving_the_folder_changes_no_split(self, tmp_path):
        for place in ("here", "there/deeper"):
            touch(tmp_path / place, *(f"{i:02d}.png" for i in range(20)))
        assert patients(tmp_path / "here", "val") == patients(tmp_path / "there/deeper", "val")

    def test_added_files_move_nobody(self, tmp_path):
        touch(tmp_path, *(f"{i:03d}.png" for i in range(50)))
        before = {split: patients(tmp_path, split, test_fraction=0.2) for split in SPLITS}
        touch(tmp_path, *(f"more/{i:03d}.png" for i in range(50)))
        for split in SPLITS:
            assert before[split] <= patients(tmp_path, split, test_fraction=0.2)

    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_small_sets_leave_no_split_empty(self, tmp_path, count, seed):
        touch(tmp_path, *(f"{i}.png" for i in range(count)))
        wanted = SPLITS if count > 2 else ("train", "val")
        fractions = {"val_fraction": 0.05, "test_fraction": 0.05 if count > 2 else 0.0}
        assert all(patients(tmp_path, split, seed=seed, **fractions) for split in wanted)
        greedy = {"val_fraction": 0.9, "test_fraction": 0.09}
        assert patients(tmp_path, "train", seed=seed, **greedy) and patients(tmp_path, "val", seed=seed, **greedy)

    def test_pattern_on_the_file_name_keeps_a_patient_together(self, tmp_path):
        touch(tmp_path, *(f"scans/p{p}_{view}.png" for p in range(20) for view in ("pa", "lat")))
        pattern = r"^p(\d+)_"
        train, val = (patients(tmp_path, s, patient_id_pattern=pattern) for s in ("train", "val"))
        assert train.isdisjoint(val) and train | val == {str(p) for p in range(20)}

    def test_pattern_with_a_slash_sees_the_folders(self, tmp_path):
        touch(tmp_path, "patient1/study1/a.png", "patient1/study2/a.png", "patient2/study1/a.png")
        assert patients(tmp_path, "all", patient_id_pattern=r"^(patient\d+)/") == {"patient1", "patient2"}

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [("(", "no regular expression"), ("p", "0 groups"), (r"q(\d)", "finds no patient in 2 of 2 files: p1.png")],
    )
    def test_bad_patterns_are_explained(self, tmp_path, pattern, message):
        touch(tmp_path, "p1.png", "p2.png")
        with pytest.raises(DatasetError, match=message.replace("(", r"\(")):
            radiograph_items(tmp_path, "all", 0, 0, patient_id_pattern=pattern)

    def test_dicom_headers_say_the_patient(self, tmp_path):
        for file, patient in [("a.dcm", "X1"), ("b.dcm", "X1"), ("c", "X2"), ("d.dcm", ""), ("e.dcm", "Anonymous")]:
            write_header(tmp_path / file, patient)
        (tmp_path / "broken.dcm").write_bytes(b"not dicom at all")
        items = radiograph_items(tmp_path, "all", 0, 0)
        assert {Path(i["image"]).name: i["patient_id"] for i in items} == {
            "a.dcm": "X1", "b.dcm": "X1", "c": "X2", "d.dcm": "d", "e.dcm": "e", "broken.dcm": "broken",
        }  # fmt: skip

    def test_one_patient_id_for_all_is_explained(self, tmp_path):
        for file in ("a.dcm", "b.dcm"):
            write_header(tmp_path / file, "SAME")
        with pytest.raises(DatasetError, match=r"val .* is empty.* 1 patient\(s\), SAME.*patient_id_pattern"):
            radiograph_items(tmp_path, "val", 0.5, 0)

    def test_limit_takes_the_first(self, tmp_path):
        touch(tmp_path, "c.png", "a.png", "b.png")
        assert names(radiograph_items(tmp_path, "all", 0, 0, limit=2), tmp_path) == ["a.png", "b.png"]


class TestManifest:
    def test_passes_columns_on_in_the_manifests_order(self, tmp_path):
        manifest(tmp_path, 'image,label,patient_id,mask,view\nb.png,2,p2,m/b.png,PA\na.png,1,p1,,"AP, supine"\n')
        first, second = radiograph_items(tmp_path, "all", 0.2, 0)
        assert first == {
            "image": str(tmp_path / "b.png"), "label": "2", "patient_id": "p2",
            "mask": str(tmp_path / "m/b.png"), "view": "PA",
        }  # fmt: skip
        assert second["view"] == "AP, supine" and "mask" not in second

    def test_reads_what_spreadsheets_write(self, tmp_path):
        manifest(tmp_path, "Image, Patient_ID ,\r\nä.png,p1,\r\n,,\r\n\r\n/abs/b.png,p2,\r\n", encoding="utf-8-sig")
        assert radiograph_items(tmp_path, "all", 0, 0) == [
            {"image": str(tmp_path / "ä.png"), "patient_id": "p1"},
            {"image": "/abs/b.png", "patient_id": "p2"},
        ]

    def test_splits_by_patient(self, tmp_path):
        rows = "".join(f"{i}.png,p{i % 10}\n" for i in range(40))
        manifest(tmp_path, "image,patient_id\n" + rows)
        train, val = (patients(tmp_path, split, val_fraction=0.3) for split in ("train", "val"))
        assert train and val and train.isdisjoint(val) and len(train | val) == 10

    def test_without_patients_splits_as_the_folder_would(self, tmp_path):
        touch(tmp_path, *(f"{i:02d}.png" for i in range(30)))
        as_folder = patients(tmp_path, "val")
        manifest(tmp_path, "image\n" + "".join(f"./{i:02d}.png\n" for i in range(30)))
        assert patients(tmp_path, "val") == as_folder

    def test_a_split_column_is_used_as_it_is(self, tmp_path):
        manifest(tmp_path, "image,split\na.png,Train\nb.png,VAL\nc.png,test\nd.png,train\n")
        assert [len(radiograph_items(tmp_path, s, 0.9, 0)) for s in (*SPLITS, "all")] == [2, 1, 1, 4]

    def test_a_patient_in_two_splits_is_an_error(self, tmp_path):
        manifest(tmp_path, "image,patient_id,split\na.png,p1,train\nb.png,p2,train\nc.png,p2,val\n")
        with pytest.raises(DatasetError, match=r"1 patients .*p2 \(line 3 train, line 4 val\)"):
            radiograph_items(tmp_path, "train", 0, 0)

    def test_a_split_the_manifest_lacks_is_an_error(self, tmp_path):
        manifest(tmp_path, "image,split\na.png,train\nb.png,test\n")
        with pytest.raises(DatasetError, match=r"no rows with split val; it has train \(1\), test \(1\)"):
            radiograph_items(tmp_path, "val", 0.2, 0)

    @pytest.mark.parametrize("column", ["file", "Filename", "path", "image_path"])
    def test_the_image_column_may_have_another_usual_name(self, tmp_path, column):
        manifest(tmp_path, f"label,{column}\n1,a.png\n")
        (item,) = radiograph_items(tmp_path, "all", 0, 0)
        assert item["image"] == str(tmp_path / "a.png") and item["label"] == "1"

    def test_missing_images_stay_for_the_readability_report(self, tmp_path):
        manifest(tmp_path, "image\nnowhere.png\n")
        assert len(radiograph_items(tmp_path, "all", 0, 0)) == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("picture,label\na.png,1\n", "no column named image (nor one of file, filename, path, image_path); found"),
            ("path,file\na.png,b.png\n", "found path, file"),
            ("image;label\na.png;1\n", "found image;label; separate the columns by commas"),
            ("", "found no header"),
            ("image\n", "no rows"),
            ("image,label\na.png,1\n,2\n", "line 3: image is empty"),
            ("image,split\na.png,train\nb.png,\n", "line 3: split is empty"),
            ("image,split\na.png,train\nb.png,dev\n", "line 3: split is 'dev'"),
            ("image,patient_id\na.png,\n", "line 2: patient_id is empty"),
            ("image,label\na.png,1\nb.png,1,2\n", "line 3 has 3 cells, the header has 2"),
            ("image\na.png\nb.png\n./a.png\n", "line 4: a.png is already on line 2"),
            ("image,x,x\na.png,1,2\n", "column 'x' more than once"),
        ],
    )
    def test_errors_name_what_was_found(self, tmp_path, text, message):
        manifest(tmp_path, text)
        with pytest.raises(DatasetError) as caught:
            radiograph_items(tmp_path, "all", 0, 0)
        assert message in str(caught.value) and "manifest.csv" in str(caught.value)

    def test_other_encodings_are_named(self, tmp_path):
        manifest(tmp_path, "image\nä.png\n", encoding="latin-1")
        with pytest.raises(DatasetError, match="not UTF-8"):
            radiograph_items(tmp_path, "all", 0, 0)


class TestWhere:
    def test_keeps_equal_rows_and_compares_as_text(self, tmp_path):
        manifest(tmp_path, "image,view,label\na.png,PA,1\nb.png,AP,1\nc.png,PA,0\n")
        assert names(radiograph_items(tmp_path, "all", 0, 0, where={"view": "PA", "label": 1}), tmp_path) == ["a.png"]

    def test_filters_do_not_change_who_is_held_out(self, tmp_path):
        manifest(tmp_path, "image,view\n" + "".join(f"{i}.png,{'PA' if i % 2 else 'AP'}\n" for i in range(60)))
        assert patients(tmp_path, "val", where={"view": "PA"}) < patients(tmp_path, "val")

    def test_unknown_columns_and_values_are_explained(self, tmp_path):
        manifest(tmp_path, "image,view\na.png,PA\n")
        with pytest.raises(DatasetError, match="'position'; there are patient_id, view"):
            radiograph_items(tmp_path, "all", 0, 0, where={"position": "PA"})
        with pytest.raises(DatasetError, match="no view is 'LL'; found PA"):
            radiograph_items(tmp_path, "all", 0, 0, where={"view": "LL"})


class TestRequest:
    def test_unusable_folders_are_explained(self, tmp_path):
        with pytest.raises(DatasetError, match="does not exist"):
            radiograph_items(tmp_path / "none", "all", 0, 0)
        with pytest.raises(DatasetError, match="no files at all"):
            radiograph_items(tmp_path, "all", 0, 0)
        touch(tmp_path, "readme.txt")
        with pytest.raises(DatasetError, match=r"found 1 files of other kinds.*\.dcm"):
            radiograph_items(tmp_path, "all", 0, 0)
        with pytest.raises(DatasetError, match="is a file"):
            radiograph_items(tmp_path / "readme.txt", "all", 0, 0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"split": "validation"}, "'validation'; choose one of train, val"),
            ({"val_fraction": 0.6, "test_fraction": 0.4}, "below 1"),
            ({"val_fraction": -0.1}, "must not be negative"),
            ({"limit": 0}, "limit is 0"),
            ({"split": "test"}, "test_fraction is 0"),
        ],
    )
    def test_bad_requests_are_explained(self, tmp_path, changes, message):
        touch(tmp_path, "a.png", "b.png")
        with pytest.raises(DatasetError, match=message):
            radiograph_items(**{"dataset_dir": tmp_path, "split": "all", "val_fraction": 0.2, "seed": 0, **changes})


def test_assert_disjoint_patients_names_the_shared():
    a, b = [{"patient_id": "p1"}, {"patient_id": "p2"}], [{"patient_id": "p2"}]
    assert_disjoint_patients(train=a[:1], val=b)
    with pytest.raises(DatasetError, match=r"1 patients .*p2 \(train and val\)"):
        assert_disjoint_patients(train=a, val=b)


def test_images_listed_can_be_opened(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    (item,) = radiograph_items(str(tmp_path), "all", 0, 0)
    assert Image.open(item["image"]).size == (8, 8)


class TestWriteManifest:
    def test_a_manifest_elsewhere_lists_the_originals(self, tmp_path):
        data = tmp_path / "data"
        touch(data, "deep/a.png", "b.png", "masks/a.png")
        text = 'image,patient_id,split,mask,"a note, long"\ndeep/a.png,P,train,masks/a.png,"1, 2"\nb.png,Q,val,,\n'
        items = radiograph_items(manifest(data, text), "all", 0.2, 0)
        write_manifest(items, tmp_path / "work" / "manifest.csv")
        assert radiograph_items(tmp_path / "work", "all", 0.2, 0) == items
        assert items[0]["mask"] == str(data / "masks/a.png") and "mask" not in items[1]

    @pytest.mark.parametrize("broken", [[], [{"image": ""}], [{"image": "a", "split": "val"}, {"image": "b"}]])
    def test_what_no_list_could_read_is_not_written(self, tmp_path, broken):
        with pytest.raises(DatasetError):
            write_manifest(broken, tmp_path / "manifest.csv")
        assert list(tmp_path.iterdir()) == []
