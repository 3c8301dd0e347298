import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from label_data import truth_folder

from common.io.mask_files import read_mask
from common.label.locked_datastore import LockedDatastore


@pytest.fixture
def store(studies):
    return LockedDatastore(str(studies), extensions=["*.png"])


def test_a_process_that_loaded_the_index_earlier_does_not_undo_what_came_since(store, studies):
    other = LockedDatastore(str(studies), extensions=["*.png"])
    store.update_image_info("tooth_0", {"from": "one"})
    other.update_image_info("tooth_1", {"from": "other"})
    store.reload()
    for reader in (store, other, LockedDatastore(str(studies), extensions=["*.png"])):
        assert reader.get_image_info("tooth_0")["from"] == "one"
        assert reader.get_image_info("tooth_1")["from"] == "other"


def test_an_error_in_the_middle_of_a_change_writes_nothing(store, studies):
    index = (studies / "datastore_v2.json").read_bytes()
    with pytest.raises(KeyError), store.changing():
        store._datastore.objects["tooth_0"].image.info["half"] = True
        raise KeyError
    assert (studies / "datastore_v2.json").read_bytes() == index


def test_half_an_index_is_kept_aside_and_made_again_from_the_files(studies):
    LockedDatastore(str(studies), extensions=["*.png"])
    index = studies / "datastore_v2.json"
    index.write_text(index.read_text()[:100])
    assert len(LockedDatastore(str(studies), extensions=["*.png"]).list_images()) == 8
    assert json.loads(index.read_text()) and (studies / "datastore_v2.json.damaged").exists()


WRITER = """
import shutil, sys
from pathlib import Path
from common.label.checked_datastore import CheckedDatastore
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
    store = LockedDatastore(str(studies), extensions=["*.png", "*.nii.gz"])
    assert len(saved) == 8 and set(store.get_labeled_images()) == saved
    for item in store.datalist():
        name = item["image"].rsplit("/", 1)[-1]
        assert np.array_equal(read_mask(item["label"]), read_mask(truth / name))
