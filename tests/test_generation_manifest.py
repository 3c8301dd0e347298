import csv
import json
import random
import resource
from collections import defaultdict

import pytest
import torch

from common.data.datalists import radiograph_items
from common.io import read_radiograph
from common.io.image_writer import write_png
from common.pipelines.generation_manifest import GenerationManifest, GenerationMismatchError
from common.pipelines.manifest_row import ManifestRow

SETTINGS = {"strategy": "variation", "weights_sha256": "3fa9", "num_inference_steps": 20, "guidance_scale": 3.0}


def row(number, patients=(), **options):
    options = {"strategy": "variation", "seed": number, "num_inference_steps": 20, "guidance_scale": 3.0, **options}
    return ManifestRow(
        image=f"images/{number:04}.png",
        method="ddim",
        weights_sha256="3fa9",
        sources=tuple(f"real/{patient}.png" for patient in patients),
        source_patient_ids=tuple(patients),
        **options,
    )


def add(manifest, *rows):
    """Write the rows' images, then the rows."""
    for item in rows:
        path = manifest.folder / item.image
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"image")
    manifest.append(rows)


def open_again(manifest):
    return GenerationManifest(manifest.folder, SETTINGS, manifest.split)


def csv_rows(folder, name="manifest.csv"):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


AWKWARD = row(
    1,
    ("P;1", "50%3B"),
    mix=0.1 + 0.2,
    label='a "quoted", label\nof two lines; Ödem',
    flagged=False,
    strategy="interpolation",
)


def test_rows_come_back_as_they_were(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    rows = [row(0), AWKWARD, row(2, ("P",), flagged=True, label="normal")]
    add(manifest, *rows[:2])
    add(manifest, rows[2])
    assert manifest.rows() == rows == open_again(manifest).rows()


def test_columns_say_how_each_image_was_made(tmp_path):
    add(GenerationManifest(tmp_path, SETTINGS), row(3, ("P", "Q"), mix=0.25, strategy="interpolation", label="normal"))
    assert csv_rows(tmp_path) == [
        {
            "image": "images/0003.png",
            "synthetic": "true",
            "patient_id": "P",
            "strategy": "interpolation",
            "seed": "3",
            "num_inference_steps": "20",
            "guidance_scale": "3.0",
            "method": "ddim",
            "weights_sha256": "3fa9",
            "sources": "real/P.png;real/Q.png",
            "source_patient_ids": "P;Q",
            "mix": "0.25",
            "label": "normal",
            "flagged": "",
        }
    ]


# ---- resuming ------------------------------------------------------------------------------------------------------


def test_a_kill_within_a_row_leaves_whole_rows_and_the_rest_can_be_added(tmp_path):
    rows = [row(0, ("A",)), AWKWARD, row(2)]
    manifest = GenerationManifest(tmp_path, SETTINGS)
    add(manifest, *rows)
    whole = (tmp_path / "manifest.csv").read_bytes()
    first = whole.index(b"\n") + 1
    delicate = {at + step for at in range(first, len(whole)) if whole[at] in b'\n"' for step in (0, 1)}
    seen = set()
    for size in sorted({first, *range(first, len(whole), 40), *delicate}):
        (tmp_path / "manifest.csv").write_bytes(whole[:size])
        resumed = open_again(manifest)
        count = len(resumed.rows())
        assert resumed.rows() == rows[:count] and [resumed.is_done(item.image) for item in rows].count(True) == count
        seen.add(count)
        resumed.append(rows[count:])
        assert (tmp_path / "manifest.csv").read_bytes() == whole
    assert seen == {0, 1, 2, 3}


def test_done_is_what_is_listed_and_there(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    add(manifest, row(0), row(1))
    (tmp_path / row(1).image).unlink()
    (tmp_path / row(2).image).write_bytes(b"written, but killed before its row")
    manifest = open_again(manifest)
    assert [manifest.is_done(row(n).image) for n in range(4)] == [True, False, False, False]
    add(manifest, row(1, seed=9), row(2))
    assert [item.image for item in manifest.rows()] == [row(n).image for n in range(3)]
    assert [item["seed"] for item in csv_rows(tmp_path)] == ["0", "9", "2"]  # replaced, not listed twice
    assert open_again(manifest).rows()[1].seed == 9


def test_a_full_disk_leaves_the_rows_of_before(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    add(manifest, row(0, ("A",)), row(1, ("B",)))
    before = (tmp_path / "manifest.csv").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, limits[1]))
    try:
        with pytest.raises(OSError):
            add(manifest, row(2, ("C",)))
        with pytest.raises(OSError):
            add(manifest, row(3, ("A", "B")))  # would rename B's group
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "manifest.csv").read_bytes() == before and not manifest.is_done(row(2).image)
    add(manifest, row(4, ("B",)))
    assert [item["patient_id"] for item in csv_rows(tmp_path)] == ["A", "B", "B"]


def test_other_settings_are_refused_with_what_differs(tmp_path):
    add(GenerationManifest(tmp_path, {**SETTINGS, "size": (256, 256)}), row(0))
    GenerationManifest(tmp_path, {**SETTINGS, "size": (256, 256)})
    with pytest.raises(GenerationMismatchError) as caught:
        GenerationManifest(tmp_path, {**SETTINGS, "size": (256, 256), "guidance_scale": 5.0}, split="train")
    message = str(caught.value)
    assert "guidance_scale: 3.0 there, 5.0 now" in message and "split: None there, train now" in message
    assert "output_dir" in message and "strategy" not in message
    with pytest.raises(GenerationMismatchError, match=r"size: \[256, 256\] there, None now"):
        GenerationManifest(tmp_path, SETTINGS)


def test_a_manifest_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,label\na.png,normal\n")
    with pytest.raises(GenerationMismatchError, match="is missing beside it"):
        GenerationManifest(tmp_path, SETTINGS)
    assert (tmp_path / "manifest.csv").read_text() == "image,label\na.png,normal\n"
    assert not (tmp_path / "generation.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",seed,", ",seeds,"),
        lambda text: text.replace(",20,", ",twenty,"),
        lambda text: text.replace("\n", ",\n"),
        lambda text: text.replace("images/0000.png", "../0000.png"),
        lambda text: text.rstrip("\n") + ",more\n",
    ],
)
def test_a_manifest_that_was_changed_by_hand_is_refused(tmp_path, change):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    add(manifest, row(0, ("P",)))
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(change(text))
    assert change(text) != text
    with pytest.raises(GenerationMismatchError, match="not as a generation run wrote it"):
        open_again(manifest)
    assert (tmp_path / "manifest.csv").read_text() == change(text)


@pytest.mark.parametrize("text", ["", "[]", '{"settings": 3}', '{"settings": [1]}'])
def test_settings_that_cannot_be_read_are_refused(tmp_path, text):
    GenerationManifest(tmp_path, SETTINGS)
    (tmp_path / "generation.json").write_text(text)
    with pytest.raises(GenerationMismatchError, match="holds no settings"):
        GenerationManifest(tmp_path, SETTINGS)


def test_rows_that_would_break_the_folder_are_refused(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="expected an image before its row"):
        manifest.append([row(0)])
    with pytest.raises(ValueError, match="each image once"):
        add(manifest, row(1), row(1))
    assert manifest.rows() == []
    with pytest.raises(ValueError, match="split 'training'"):
        GenerationManifest(tmp_path, SETTINGS, split="training")


def test_dropped_images_are_gone_and_not_made_again(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    add(manifest, row(0), row(1))
    manifest.drop([row(1, flagged=True)])  # after the fact
    manifest.drop([row(2, flagged=True)])  # before it was written
    assert not (tmp_path / row(1).image).exists()
    for opened in (manifest, open_again(manifest)):
        assert [opened.is_done(row(n).image) for n in range(4)] == [True, True, True, False]
        assert opened.rows() == [row(0)]
    assert [(item["image"], item["flagged"]) for item in csv_rows(tmp_path, "dropped.csv")] == [
        ("images/0001.png", "yes"),
        ("images/0002.png", "yes"),
    ]
    with pytest.raises(ValueError, match="none dropped before"):
        add(open_again(manifest), row(1))


def test_a_kill_while_dropping_is_finished_on_the_next_start(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    add(manifest, row(0), row(1))
    listed = (tmp_path / "manifest.csv").read_bytes()
    manifest.drop([row(1, flagged=True)])
    (tmp_path / "manifest.csv").write_bytes(listed)
    (tmp_path / row(1).image).write_bytes(b"not deleted yet")
    manifest = open_again(manifest)
    assert manifest.rows() == [row(0)]
    assert len(csv_rows(tmp_path)) == 1 and not (tmp_path / row(1).image).exists()
    manifest.drop([row(2)])
    assert [item["image"] for item in csv_rows(tmp_path, "dropped.csv")] == [row(1).image, row(2).image]


# ---- as a data set -------------------------------------------------------------------------------------------------


def test_the_folder_is_a_data_set(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    for item in (row(0, ("P",), label="normal"), row(1)):
        write_png(torch.rand(1, 16, 16), tmp_path / item.image, provenance=item.provenance())
        manifest.append([item])
    items = radiograph_items(tmp_path, "all", val_fraction=0, seed=0)
    assert [item["patient_id"] for item in items] == ["P", "synthetic:images/0001.png"]
    assert [item["label"] for item in items] == ["normal", ""] and {item["synthetic"] for item in items} == {"true"}
    assert all(read_radiograph(item["image"]).pixels.shape == (1, 16, 16) for item in items)


def patients_by_split(folder, seed):
    """Source patients of the images in each split."""
    found = defaultdict(set)
    for split in ("train", "val", "test"):
        for item in radiograph_items(folder, split, val_fraction=0.3, test_fraction=0.2, seed=seed):
            found[split].update(filter(None, item["source_patient_ids"].split(";")))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_source_patient_is_in_two_splits_however_the_interpolations_link_them(tmp_path, seed):
    rng = random.Random(seed)
    patients = [f"patient {number}" for number in range(40)]
    plan = [(patient,) for patient in patients] + [tuple(rng.sample(patients, 2)) for _ in range(14)] + [()] * 5
    rng.shuffle(plan)
    rows = [row(number, chosen) for number, chosen in enumerate(plan)]
    manifest = GenerationManifest(tmp_path, SETTINGS)
    while rows:
        count = rng.randint(1, 5)
        add(manifest, *rows[:count])
        rows = rows[count:]
        if rng.random() < 0.2:
            manifest = open_again(manifest)
    found = patients_by_split(tmp_path, seed)
    assert sum(len(names) for names in found.values()) == len(set.union(*found.values())) == 40
    assert len({item["patient_id"] for item in csv_rows(tmp_path)}) > 10  # not simply all in one
    text = (tmp_path / "manifest.csv").read_bytes()
    open_again(manifest)
    assert (tmp_path / "manifest.csv").read_bytes() == text


def test_a_link_that_comes_late_moves_the_images_of_before(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS)
    add(manifest, row(0, ("A",)), row(1, ("B",)), row(2, ("C",)))
    assert [item["patient_id"] for item in csv_rows(tmp_path)] == ["A", "B", "C"]
    add(manifest, row(3, ("C", "D")))
    add(manifest, row(4, ("D", "A")), row(5, ("D",)))
    names = [item["patient_id"] for item in csv_rows(tmp_path)]
    assert names[0] == names[2] == names[3] == names[4] == names[5] != names[1]


def test_variations_share_the_split_of_the_real_patient(tmp_path):
    manifest = GenerationManifest(tmp_path / "generated", SETTINGS)
    add(manifest, *(row(number, (f"P{number % 30}",)) for number in range(60)))
    real = tmp_path / "real"
    real.mkdir()
    (real / "manifest.csv").write_text("image,patient_id\n" + "".join(f"{n}.png,P{n}\n" for n in range(30)))
    for split in ("train", "val"):
        chosen = [
            {item["patient_id"] for item in radiograph_items(folder, split, val_fraction=0.3, seed=1)}
            for folder in (real, manifest.folder)
        ]
        assert chosen[0] == chosen[1] and len(chosen[0]) > 3


def test_a_split_of_the_sources_is_that_of_all_images(tmp_path):
    manifest = GenerationManifest(tmp_path, SETTINGS, split="val")
    add(manifest, row(0, ("P",)), row(1, ("P", "Q")), row(2))
    assert len(radiograph_items(tmp_path, "val", val_fraction=0, seed=0)) == 3
    assert json.loads((tmp_path / "generation.json").read_text())["settings"]["split"] == "val"
