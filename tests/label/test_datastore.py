"""The folder that is served: what comes in, what is refused, and that nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from label_data import truth_folder
from PIL import Image

from common.errors import UserError
from common.io.mask_files import read_mask
from common.io.segmentation_classes import GROUPED
from common.label.client_files import image_size, read_label, slicer_labels
from common.label.datastore import CheckedDatastore


def opened(studies):
    return CheckedDatastore(str(studies), GROUPED, extensions=["*.png", "*.nii.gz"])


@pytest.mark.parametrize("image_id", [".hidden", "..", "../outside", "a/b", "a\\b", "a\nb", "x" * 300])
def test_ids_that_are_no_file_names_are_refused(studies, image_id):
    with pytest.raises(UserError):
        opened(studies).add_image(image_id, str(studies / "tooth_0.png"), {})


def test_names_with_dots_and_umlauts_are_ids(studies):
    opened(studies).add_image("pä_IO000001.1 (2)", str(studies / "tooth_0.png"), {})
    assert (studies / "pä_IO000001.1 (2).png").read_bytes() == (studies / "tooth_0.png").read_bytes()


@pytest.mark.parametrize("tag", ["", "../final", "a/b", "a b"])
def test_tags_that_are_no_words_are_refused(studies, tag):
    with pytest.raises(UserError):
        opened(studies).save_label("tooth_0", str(truth_folder(studies) / "tooth_0.png"), tag, {})


def test_a_process_that_loaded_the_index_earlier_does_not_undo_what_came_since(studies):
    store, other = opened(studies), opened(studies)
    store.update_image_info("tooth_0", {"from": "one"})
    other.save_label("tooth_1", str(truth_folder(studies) / "tooth_1.png"), "final", {"from": "other"})
    store.update_image_info("tooth_2", {"from": "one"})
    for reader in (store, other, opened(studies)):
        reader.reload()
        assert [reader.get_image_info(f"tooth_{number}").get("from") for number in (0, 2)] == ["one", "one"]
        assert reader.get_label_info("tooth_1", "final")["from"] == "other"


def test_an_image_that_cannot_be_copied_is_not_listed(studies, monkeypatch):
    store = opened(studies)
    index = (studies / "datastore_v2.json").read_bytes()
    monkeypatch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.add_image("new", str(studies / "tooth_0.png"), {})
    assert (studies / "datastore_v2.json").read_bytes() == index and not list(studies.glob("*new*"))


def test_half_an_index_is_kept_aside_and_made_again_from_the_files(studies):
    opened(studies)
    index = studies / "datastore_v2.json"
    index.write_text(index.read_text()[:100])
    assert len(opened(studies).list_images()) == 8
    assert json.loads(index.read_text()) and (studies / "datastore_v2.json.damaged").exists()


def test_what_is_not_offered_is_counted_by_kind_in_one_line(studies, caplog):
    for name in ("scan.bmp", "IM0001", "deep/scan.png"):
        (studies / name).parent.mkdir(exist_ok=True)
        (studies / name).touch()
    (studies / "gone.png").symlink_to(studies / "nowhere.png")
    assert len(opened(studies).list_images()) == 8
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    for part in (" 4 files", "1 .bmp", "1 no suffix", "1 in subfolders", "1 dangling link"):
        assert part in line


WRITER = """
import sys
from pathlib import Path
from common.label.datastore import CheckedDatastore
from common.io.mask_files import read_mask, write_nifti_mask
from common.io.segmentation_classes import GROUPED
studies, truth = map(Path, sys.argv[1:])
store = CheckedDatastore(str(studies), GROUPED, extensions=["*.png", "*.nii.gz"])
for mask in truth.glob("*.png"):
    write_nifti_mask(read_mask(mask), truth / f"{mask.stem}.nii.gz", None)
for number in range(100000):
    image = f"tooth_{number % 8}"
    suffix = [".png", ".nii.gz"][number // 8 % 2]
    store.save_label(image, str(truth / f"{image}{suffix}"), "final", {"long": "x" * 99999})
    print(image, flush=True)
"""


def test_killed_while_saving_labels_none_that_was_saved_is_lost(studies):
    truth = truth_folder(studies)
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(studies), str(truth)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        saved = {process.stdout.readline().strip() for _ in range(11)}
        time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    json.loads((studies / "datastore_v2.json").read_text())
    assert not (studies / "datastore_v2.json.damaged").exists()
    store = opened(studies)
    assert len(saved) == 8 and set(store.get_labeled_images()) == saved
    for item in store.datalist():
        name = item["image"].rsplit("/", 1)[-1]
        assert np.array_equal(read_mask(item["label"]), read_mask(truth / name))


# ---- files of clients ------------------------------------------------------------------------------------------------


def test_messages_name_the_image_not_the_temporary_file(tmp_path):
    path = tmp_path / "tmpabc.png"
    path.write_text("no picture")
    with pytest.raises(UserError) as refused:
        image_size(path, "tooth.png")
    assert str(refused.value).startswith("tooth.png: ") and "tmpabc" not in str(refused.value)


def test_a_mask_of_another_size_or_with_another_value_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.full((4, 5), 9, np.uint8)).save(path)
    for size, found in (((5, 4), "4 × 5"), ((4, 5), "[9]")):
        with pytest.raises(UserError) as refused:
            read_label(path, "tooth", size, GROUPED)
        assert found in str(refused.value)


@pytest.mark.parametrize(
    ("values", "segments", "labels"),
    [
        ([0, 1, 2], [{"name": "Root", "idx": 1}, {"name": "decay", "idx": 5}], [0, 1, 5]),  # numbered anew by Slicer
        ([0, 1, 5], [{"name": "Root", "idx": 1}, {"name": "decay", "idx": 5}], [0, 1, 5]),  # or with its own values
        ([5, 0, 2], [{"name": name, "idx": label} for label, name in enumerate(GROUPED.names) if label], [5, 0, 2]),
        ([1, 0], [{"name": "root"}, {"name": "Segment_2"}], [1, 0]),  # a name that is no class, but not in use
        ([2], [{"name": "root"}, {"name": "Segment_2"}], None),
        ([3], [{"name": "root"}, {"name": "decay"}], None),
        ([1], [{"name": "background"}], None),
    ],
)
def test_segments_are_told_by_name(values, segments, labels):
    if labels is None:
        with pytest.raises(UserError):
            slicer_labels(np.array([values]), segments, GROUPED)
    else:
        assert slicer_labels(np.array([values]), segments, GROUPED).tolist() == [labels]
