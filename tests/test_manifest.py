"""The manifest of a generated folder: how images were made, no patient on two sides, what a privacy check took out."""

import csv
import random
from collections import defaultdict

import pytest
import torch

from common.data.datalists import radiograph_items
from common.errors import DatasetError, RunError
from common.files import JOB_RECORD, locked_folder
from common.io.image_writer import write_png
from common.pipelines.job_log import Entry, Item, JobLog
from common.pipelines.manifest import (
    ROW_COLUMNS,
    joined,
    patient_groups,
    provenance_texts,
    revise_generation,
    several,
    write_generation_manifest,
)

SETTINGS = {"strategy": "variation", "split": None}


def row(number, patients=(), **columns):
    known = {"image": f"images/{number:04}.png", "strategy": "variation", "seed": number, "num_inference_steps": 20}
    known |= {"guidance_scale": 3.0, "method": "ddim", "weights_sha256": "3fa9"}
    known |= {"mix": None, "label": "", "flagged": ""}
    sources = {
        "sources": joined(f"real/{each}.png" for each in patients),
        "source_patient_ids": joined(patients),
        "source_unlikeness": 0.5,
    }
    return {**known, **sources, **columns}


def csv_rows(folder, name="manifest.csv"):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def generated(folder, *rows):
    """A folder as a generation leaves it."""
    log = JobLog(folder, SETTINGS, keeps_folder=True)
    for each in rows:
        (folder / "images").mkdir(exist_ok=True)
        write_png(torch.rand(1, 16, 16), folder / each["image"], provenance=provenance_texts(each))
    log.append([Entry(each["image"][7:-4], "", [], each) for each in rows])
    write_generation_manifest(folder, rows, None)


# ---- cells and rows ------------------------------------------------------------------------------------------------


def test_columns_say_how_each_image_was_made(tmp_path):
    made = row(3, ("P", "Q"), mix=0.25, strategy="interpolation", label='a "quoted", label\nof two lines; Ödem')
    write_generation_manifest(tmp_path, [made], None)
    texts = {name: "" if value is None else str(value) for name, value in made.items()}
    assert csv_rows(tmp_path) == [{**texts, "synthetic": "true", "patient_id": "P"}]


def test_a_cell_holds_several_values_whatever_is_in_them():
    values = ("a;b", "50%3B", "100%", "plain")
    assert several(joined(values)) == values and several("") == ()


def test_what_goes_into_the_picture_names_no_source():
    texts = provenance_texts(row(3, ("P-secret", "Q-secret"), mix=0.25, label="normal"))
    assert "secret" not in str(texts)
    assert (texts["seed"], texts["mix"], texts["label"]) == ("3", "0.25", "normal")
    assert texts.keys() < set(ROW_COLUMNS) and "mix" not in provenance_texts(row(3))


# ---- groups of patients --------------------------------------------------------------------------------------------


def test_an_image_joins_its_patients_and_links_join_groups():
    assert patient_groups([("A",), ("B", "C"), (), ("D", "E"), ("C", "D")]) == ["A", "B", "", "B", "B"]
    assert patient_groups([(), ()]) == ["", ""] and patient_groups([]) == []


def patients_by_split(folder, seed):
    """Source patients of the images in each split."""
    found = defaultdict(set)
    for split in ("train", "val"):
        for item in radiograph_items(folder, split, val_fraction=0.3, seed=seed):
            found[split].update(filter(None, item["source_patient_ids"].split(";")))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_source_patient_is_in_two_splits_however_the_interpolations_link_them(tmp_path, seed):
    rng = random.Random(seed)
    patients = [f"patient {number}" for number in range(40)]
    plan = [(patient,) for patient in patients] + [tuple(rng.sample(patients, 2)) for _ in range(14)] + [()] * 5
    rng.shuffle(plan)
    generated(tmp_path, *(row(number, chosen) for number, chosen in enumerate(plan)))
    found = patients_by_split(tmp_path, seed)
    assert sum(len(names) for names in found.values()) == len(set.union(*found.values())) == 40
    assert len({item["patient_id"] for item in csv_rows(tmp_path)}) > 10  # not simply all in one


def test_variations_share_the_split_of_the_real_patient(tmp_path):
    generated(tmp_path / "generated", *(row(number, (f"P{number % 30}",)) for number in range(60)))
    real = tmp_path / "real"
    real.mkdir()
    (real / "manifest.csv").write_text("image,patient_id\n" + "".join(f"{n}.png,P{n}\n" for n in range(30)))
    for split in ("train", "val"):
        chosen = [
            {item["patient_id"] for item in radiograph_items(folder, split, val_fraction=0.3, seed=1)}
            for folder in (real, tmp_path / "generated")
        ]
        assert chosen[0] == chosen[1] and len(chosen[0]) > 3


# ---- as a data set -------------------------------------------------------------------------------------------------


# ---- revised after a privacy check ---------------------------------------------------------------------------------


def test_dropped_images_are_gone_listed_and_not_made_again(tmp_path):
    generated(tmp_path, row(0), row(1), row(2))
    revise_generation(tmp_path, {row(0)["image"]: False, row(1)["image"]: True}, [row(1)["image"]])
    revise_generation(tmp_path, {})  # keeps what is known
    assert [(line["image"], line["flagged"]) for line in csv_rows(tmp_path)] == [
        ("images/0000.png", "no"),
        ("images/0002.png", ""),
    ]
    assert [line["flagged"] for line in csv_rows(tmp_path, "dropped.csv")] == ["yes"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["0000.png", "0002.png"]
    log = JobLog(tmp_path, SETTINGS, keeps_folder=True)
    done = [log.has(Item(f"{number:04}"), tmp_path / row(number)["image"]) for number in range(4)]
    assert done == [True, True, True, False]


def test_a_folder_of_another_make_or_in_use_is_left_alone(tmp_path):
    with pytest.raises(DatasetError):
        revise_generation(tmp_path, {})
    generated(tmp_path, row(0))
    with locked_folder(tmp_path), pytest.raises(RunError):
        revise_generation(tmp_path, {}, [row(0)["image"]])
    assert (tmp_path / row(0)["image"]).is_file() and (tmp_path / JOB_RECORD).is_file()
