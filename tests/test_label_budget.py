import csv

import numpy as np
import pytest
import torch
from dental_data import write_labelled_folder
from PIL import Image
from test_segmentation_classes import OWN

from common.data.label_budget import labelled_radiographs, within_budget
from common.data.mask_transforms import LoadMaskd
from common.errors import DatasetError
from common.io.mask_files import write_mask_png, write_nifti_mask
from common.io.segmentation_classes import ELEVEN, GROUPED


def items_of(groups):
    return [{"image": f"{number}.png", "patient_id": str(number), "group": g} for number, g in enumerate(groups)]


def test_a_smaller_budget_is_part_of_a_larger_one_and_seeds_differ():
    items = items_of(range(30))
    orders = [[item["image"] for item in within_budget(items, 30, seed)] for seed in (0, 1)]
    for budget in (1, 2, 7, 29):
        assert [item["image"] for item in within_budget(items, budget, 0)] == orders[0][:budget]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_near_duplicates_come_after_the_first_of_every_group():
    items = items_of([0, 0, 0, 1, 1, 2])
    assert {item["group"] for item in within_budget(items, 3, 0)} == {0, 1, 2}
    assert len(within_budget(items, 6, 0)) == 6
    for budget in (0, 7):
        with pytest.raises(DatasetError, match="label_budget"):
            within_budget(items, budget, 0)


def listed(folder, split="train", **options):
    return labelled_radiographs(folder / "data", split, 0.1, 0, folder / "report", 0.5, **options)


def test_items_have_their_mask_as_label_and_patients_are_in_one_split(tmp_path):
    images = write_labelled_folder(tmp_path / "data", 6)
    train, val = listed(tmp_path), listed(tmp_path, "val")
    assert [item["image"] for item in train + val] == [str(image) for image in images]
    assert all(item["label"] == item["mask"] and item["label"].endswith("png") for item in train)
    assert not {item["patient_id"] for item in train} & {item["patient_id"] for item in val}
    assert len(listed(tmp_path, label_budget=2)) == 2
    assert not any("mask_values" in item for item in train)


def test_what_the_mask_values_are_is_said_of_every_item_that_does_not_say_it(tmp_path):
    write_labelled_folder(tmp_path / "data", 4)
    manifest = tmp_path / "data" / "manifest.csv"
    header, first, *rows = manifest.read_text().split()
    manifest.write_text("\n".join([f"{header},mask_values", f"{first},labels", *(f"{row}," for row in rows)]))
    assert [item["mask_values"] for item in listed(tmp_path, mask_values="periapical")] == ["labels", "periapical"]


@pytest.mark.parametrize(
    ("values", "table", "expected"),
    [
        ((0, 1, 11), "grouped", "periapical"),
        ((0, 1, 5), "grouped", None),
        ((0, 1, 12), "grouped", None),
        ((0, 5, 11), "eleven", "labels"),
        ((0, 1), "caries", "labels"),
        ((0, 7), OWN, "clinic"),
    ],
)
def test_what_mask_values_mean_is_recognised_or_asked_for(tmp_path, values, table, expected):
    write_labelled_folder(tmp_path / "data", 4, num_val=1)
    for path in sorted((tmp_path / "data" / "masks").iterdir()):
        mask = np.resize(np.array(values, np.uint8), np.asarray(Image.open(path)).shape)
        Image.fromarray(mask).save(path)
    if expected is None:
        with pytest.raises(DatasetError):
            listed(tmp_path, class_table=table)
    else:
        assert {item["mask_values"] for item in listed(tmp_path, class_table=table)} == {expected}


def test_all_masks_with_values_that_are_no_class_are_told_at_once(tmp_path):
    images = write_labelled_folder(tmp_path / "data", 5, num_val=1)
    bad = [str(image.parent.parent / "masks" / image.name) for image in images[:3:2]]
    for path in bad:
        Image.fromarray(np.full((45, 61), 77, np.uint8)).save(path)
    with pytest.raises(DatasetError) as caught:
        listed(tmp_path, class_table="grouped", mask_values="periapical")
    assert all(path in str(caught.value) for path in bad) and str(images[1].name) not in str(caught.value)
    assert len(listed(tmp_path, "val", class_table="grouped", mask_values="periapical")) == 1


@pytest.mark.parametrize("form", ["png", "nii.gz"])
def test_masks_that_this_bundle_wrote_are_read_as_what_they_are_whatever_is_said(tmp_path, form):
    write_labelled_folder(tmp_path / "data", 4, num_val=1)
    labels = np.zeros((45, 61), np.uint8)
    labels[5:, 9:20], labels[20:, 30:] = 1, 5
    for path in sorted((tmp_path / "data" / "masks").iterdir()):
        if form == "png":
            write_mask_png(labels, path, GROUPED)
        else:
            write_nifti_mask(labels, tmp_path / "mask.nii.gz", None, table="grouped").replace(path)
    item = listed(tmp_path, class_table="grouped")[0]
    for said in (item["mask_values"], "labels", "periapical"):
        loaded = LoadMaskd(["label"], GROUPED, said)({"image": torch.zeros(1, 45, 61), "label": item["label"]})
        assert np.array_equal(loaded["label"][0].numpy(), labels), said
    with pytest.raises(DatasetError, match="grouped"):
        LoadMaskd(["label"], ELEVEN, "periapical")({"image": torch.zeros(1, 45, 61), "label": item["label"]})


def test_a_damaged_mask_is_skipped_and_reported_and_an_image_without_mask_left_out(tmp_path):
    images = write_labelled_folder(tmp_path / "data", 6)
    (tmp_path / "data" / "masks" / images[0].name).write_text("not a mask")
    manifest = tmp_path / "data" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(f"masks/{images[1].name}", ""))
    assert [item["image"] for item in listed(tmp_path)] == [str(image) for image in images[2:4]]
    with open(tmp_path / "report" / "skipped.csv") as stream:
        (row,) = csv.DictReader(stream)
    assert row["image"].endswith(f"masks/{images[0].name}") and row["expected"].startswith("a mask")
    manifest.unlink()
    with pytest.raises(DatasetError, match="12 images"):  # half of which are masks; none has one
        listed(tmp_path)
