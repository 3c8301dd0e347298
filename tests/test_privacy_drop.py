import shutil

import pytest
from privacy_folders import SETTINGS, copy_of, fresh, generate, read_csv

from common.data.datalists import radiograph_items
from common.errors import DatasetError
from common.evaluation.privacy_drop import drop_flagged
from common.files import JOB_RECORD
from common.pipelines.job_log import Item, JobLog


def flagged_folder(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", [*fresh(2), copy_of(3)], {1: [real_phantoms[0][7]]})
    dicom = tmp_path / "generated" / "dicom" / "0002.dcm"
    dicom.parent.mkdir()
    dicom.write_bytes(b"the same picture")
    privacy_check(real_phantoms).run()
    return tmp_path / "generated", tmp_path / "report"


def is_dropped(folder):
    rows = {row["image"]: row["flagged"] for row in read_csv(folder / "manifest.csv")}
    dropped = {row["image"]: row["flagged"] for row in read_csv(folder / "dropped.csv")}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    pictures = {name for name in files if name.endswith((".png", ".dcm"))}
    return (
        rows == {"images/0000.png": "no", "images/0001.png": "no"}
        and dropped == {"images/0002.png": "yes"}
        and pictures == {"images/0000.png", "images/0001.png", "flagged/images/0002.png", "flagged/dicom/0002.dcm"}
    )


def test_flagged_images_leave_the_folder_for_good(tmp_path, real_phantoms, privacy_check):
    folder, report = flagged_folder(tmp_path, real_phantoms, privacy_check)
    assert drop_flagged(folder, report) == ["images/0002.png"]
    assert is_dropped(folder)
    log = JobLog(folder, {**SETTINGS, "split": "train"}, keeps_folder=True)
    assert log.has(Item("0002"), folder / "images" / "0002.png")  # not made again
    assert len(radiograph_items(folder, "train", 0, 0)) == 2  # nor trained on
    assert drop_flagged(folder, report) == []
    assert is_dropped(folder)


def test_an_interrupted_drop_is_completed(tmp_path, real_phantoms, privacy_check):
    folder, report = flagged_folder(tmp_path, real_phantoms, privacy_check)
    moved = folder / "flagged" / "images" / "0002.png"
    moved.parent.mkdir(parents=True)
    (folder / "images" / "0002.png").rename(moved)
    assert drop_flagged(folder, report) == ["images/0002.png"]
    assert is_dropped(folder)


def test_reports_of_other_folders_are_refused(tmp_path, real_phantoms, privacy_check):
    folder, report = flagged_folder(tmp_path, real_phantoms, privacy_check)
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(DatasetError):
        drop_flagged(tmp_path / "other", report)
    with pytest.raises(DatasetError):
        drop_flagged(folder, tmp_path / "nothing")
    (folder / JOB_RECORD).unlink()
    with pytest.raises(DatasetError):
        drop_flagged(folder, report)
    assert (folder / "images" / "0002.png").is_file()
