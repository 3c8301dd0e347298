"""Phantoms as training, held-out and generated images: what a check says of copies, and what is dropped for it."""

import csv
import functools
import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from common.data.datalists import radiograph_items
from common.data.phantom import draw_chest_phantom
from common.errors import DatasetError
from common.evaluation.nearest_patients import SPACES
from common.evaluation.patient_link import link_markdown
from common.evaluation.privacy_drop import drop_flagged
from common.evaluation.privacy_report import PrivacyCheck, altered_copy, markdown, summary
from common.files import JOB_RECORD
from common.intensity import stored_values
from common.pipelines.job_log import Entry, Item, JobLog
from common.pipelines.manifest import ROW_COLUMNS, joined, write_generation_manifest

SIZE = 64
NUM_TRAIN, NUM_HELD_OUT = 45, 40
SETTINGS = {"strategy": "variation", "seed": 0}
OPTIONS = {"image_size": SIZE, "picture_size": 32, "max_shift": 2, "num_controls": 10, "batch_size": 16}


class Pooling(nn.Module):
    """An encoder with a weight that counts what it sees."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.images = 0

    def forward(self, image):
        self.images += len(image)
        pooled = F.adaptive_avg_pool2d(image, 6).flatten(1) * self.weight
        return SimpleNamespace(cls_token=pooled - pooled.mean(1, keepdim=True))


@functools.cache
def phantom(seed):
    return draw_chest_phantom(SIZE, SIZE, seed=seed)


@pytest.fixture(scope="module")
def copy_feature_cache(tmp_path_factory):
    """Features that all tests share, as several checks of one training set would."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def real_phantoms(tmp_path_factory):
    """Phantoms as training and held-out images, each of a patient of its own."""
    folder = tmp_path_factory.mktemp("real")
    for number in range(NUM_TRAIN + NUM_HELD_OUT):
        Image.fromarray(stored_values(phantom(number), 8)).save(folder / f"{number:03}.png")
    items = [{"image": str(folder / f"{n:03}.png"), "patient_id": f"P{n}"} for n in range(NUM_TRAIN + NUM_HELD_OUT)]
    return items[:NUM_TRAIN], items[NUM_TRAIN:]


def generate(folder, images, sources=None, split="train"):
    """A generated folder with these images [1, H, W]; sources by number: items."""
    (folder / "images").mkdir(parents=True)
    log = JobLog(folder, {**SETTINGS, "split": split}, keeps_folder=True)
    entries = []
    for number, image in enumerate(images):
        own = (sources or {}).get(number, ())
        columns = dict.fromkeys(ROW_COLUMNS, "") | {"image": f"images/{number:04}.png", "seed": number}
        columns |= {"sources": joined(item["image"] for item in own), "strategy": "variation" if own else "prior"}
        columns |= {"source_patient_ids": joined(item["patient_id"] for item in own)}
        Image.fromarray(stored_values(image, 8)).save(folder / columns["image"])
        entries.append(Entry(f"{number:04}", "", [], columns))
    log.append(entries)
    write_generation_manifest(folder, [entry.row for entry in entries], split)


def fresh(count, first=1000):
    return [phantom(first + number) for number in range(count)]


def copy_of(number):
    """A training image given back with noise."""
    image = phantom(number)
    return (image + 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


@pytest.fixture
def privacy_check(tmp_path, copy_feature_cache):
    def make(real, encoder=None, **options):
        options = {**OPTIONS, "cache_dir": copy_feature_cache, **options}
        folders = tmp_path / "generated", tmp_path / "report"
        return PrivacyCheck(folders[0], *real, encoder or Pooling(), "cpu", folders[1], **options)

    return make


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_copies_are_reported_with_their_originals(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", [*fresh(6), copy_of(3), copy_of(41)])
    report = privacy_check(real_phantoms).run()
    folder = tmp_path / "report"
    assert report == json.loads((folder / "privacy.json").read_text())
    assert report["verdict"]["level"] == "copies" and report["verdict"]["num_copies"] == 2
    assert report["images"] == {"generated": 8, "training": NUM_TRAIN, "held_out": NUM_HELD_OUT}
    assert report["settings"]["generated_dir"] == str((tmp_path / "generated").resolve())
    assert report["spaces"]["pixels"]["smallest_p_value"] == pytest.approx(1 / (NUM_HELD_OUT + 1))

    lines = read_csv(folder / "privacy_per_image.csv")
    assert [line["image"] for line in lines] == [f"images/{i:04}.png" for i in range(8)]
    assert [line["flagged"] for line in lines] == ["no"] * 6 + ["yes"] * 2
    assert [line["strategy"] for line in lines] == ["prior"] * 8
    flagged = {line["image"]: line for line in read_csv(folder / "flagged.csv")}
    assert flagged.keys() == {"images/0006.png", "images/0007.png"}
    for space in SPACES:
        for image, number in (("images/0006.png", 3), ("images/0007.png", 41)):
            assert flagged[image][f"{space}_nearest"] == real_phantoms[0][number]["image"]
            assert float(flagged[image][f"{space}_distance"]) < 0.1


def test_a_set_without_copies_is_called_so(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", fresh(12))
    report = privacy_check(real_phantoms, false_flag_rate=0.1).run()
    assert report["verdict"]["level"] == "no_sign"
    assert read_csv(tmp_path / "report" / "flagged.csv") == [] or report["verdict"]["num_flagged"]
    assert (tmp_path / "report" / "flagged.csv").read_text().startswith("image,strategy,sources,flagged")
    assert (tmp_path / "report" / "flagged.png").is_file()  # the nearest, which nobody flagged


def test_sensitivity_counts_altered_copies(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", fresh(2))
    report = privacy_check(real_phantoms, false_flag_rate=0.5).run()
    assert report["sensitivity"]["copies"] == 10 and report["sensitivity"]["found"] >= 8
    blind = privacy_check(real_phantoms, Pooling(0.0), picture_size=4, max_shift=1, false_flag_rate=0.5)
    report = blind.run()
    assert report["sensitivity"]["found"] <= 5
    assert privacy_check(real_phantoms, num_controls=0).run()["sensitivity"] is None


def test_own_sources_are_told_apart(tmp_path, real_phantoms, privacy_check):
    train, held_out = list(real_phantoms[0]), real_phantoms[1]
    train[3] = {**train[3], "image": str(tmp_path / "a;b%.png")}  # a name that a list of names must escape
    shutil.copy(real_phantoms[0][3]["image"], train[3]["image"])
    sources = {0: [train[3]], 1: [train[3]], 2: [held_out[0]], 3: [{"image": "/gone.png", "patient_id": "X"}]}
    generate(tmp_path / "generated", [copy_of(3), copy_of(5), *fresh(2)], sources)
    report = privacy_check((train, held_out)).run()
    lines = read_csv(tmp_path / "report" / "privacy_per_image.csv")
    assert [line["flagged"] for line in lines] == ["no", "yes", "no", "no"]  # image 1 copies someone else
    assert lines[0]["pixels_nearest_is_own_source"] == "yes" and lines[0]["pixels_nearest"] != train[3]["image"]
    assert float(lines[0]["pixels_source_distance"]) < float(lines[0]["pixels_distance"])
    assert lines[1]["pixels_nearest"] == train[5]["image"]
    assert lines[3]["pixels_source_distance"] == ""
    own = report["own_sources"]
    assert (own["samples_with_known_source"], own["samples_with_unknown_source"]) == (3, 1)
    assert own["nearest_is_own_source"]["pixels"] == 1
    assert report["verdict"]["num_groups"] == 3  # images 0 and 1 are variations of one source


def test_features_are_kept_for_the_next_run(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", fresh(4))
    first, second, other = Pooling(), Pooling(), Pooling(2.0)
    report = privacy_check(real_phantoms, first, num_controls=0, cache_dir=None).run()
    again = privacy_check(real_phantoms, second, num_controls=0, cache_dir=None).run()
    assert first.images == NUM_TRAIN + NUM_HELD_OUT + 4 and second.images == 0
    assert again["verdict"] == report["verdict"] and again["spaces"] == report["spaces"]
    privacy_check(real_phantoms, other, num_controls=0, cache_dir=None).run()  # other weights, other features
    assert other.images == first.images and (tmp_path / "report" / "features").is_dir()


def test_unreadable_files_are_reported_and_the_others_done(tmp_path, real_phantoms, privacy_check):
    train, held_out = real_phantoms
    generate(tmp_path / "generated", [*fresh(3), copy_of(3)])
    (tmp_path / "generated" / "images" / "0001.png").write_text("no image")
    lost = {"image": str(tmp_path / "lost.png"), "patient_id": "L"}
    with pytest.raises(DatasetError):
        privacy_check(([lost, *train], held_out)).run()
    report = json.loads((tmp_path / "report" / "privacy.json").read_text())
    assert [path for path, _ in report["unreadable"]["training"]] == [lost["image"]]
    assert [path for path, _ in report["unreadable"]["generated"]] == [str(tmp_path / "generated" / "images/0001.png")]
    lines = read_csv(tmp_path / "report" / "privacy_per_image.csv")
    assert [line["image"] for line in lines] == ["images/0000.png", "images/0002.png", "images/0003.png"]
    assert lines[2]["flagged"] == "yes" and lines[2]["pixels_nearest"] == train[3]["image"]  # not one further


def test_patients_on_both_sides_and_folders_without_manifest_are_refused(tmp_path, real_phantoms, privacy_check):
    train, held_out = real_phantoms
    with pytest.raises(DatasetError):
        privacy_check(real_phantoms).run()
    generate(tmp_path / "generated", fresh(1))
    with pytest.raises(DatasetError):
        privacy_check((train, [*held_out, train[0]])).run()
    (tmp_path / "generated" / "manifest.csv").write_text("name\na.png\n")
    with pytest.raises(DatasetError):
        privacy_check(real_phantoms).run()
    assert not (tmp_path / "report").exists()


def test_sheet_shows_samples_beside_their_neighbours_the_worst_first(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", [*fresh(3), copy_of(3)])
    privacy_check(real_phantoms, num_examples=2).run()
    with Image.open(tmp_path / "report" / "flagged.png") as sheet:
        assert sheet.width == 4 + 3 * (SIZE + 4) and sheet.height == 24 + 2 * (SIZE + 4 + 20)
        cells = [np.asarray(sheet)[44 : 44 + SIZE, 4 + i * (SIZE + 4) :][:, :SIZE] for i in range(3)]
    expected = [(phantom(3)[0] * 255).numpy()] * 3
    assert np.abs(cells[0] - expected[0]).mean() < 5  # the copy has noise
    for cell, image in zip(cells[1:], expected[1:], strict=True):
        np.testing.assert_allclose(cell, image, atol=1)


def test_what_may_be_shared_has_the_figures_names_nobody_and_can_go_to_a_folder_of_its_own(
    tmp_path, real_phantoms, privacy_check, caplog
):
    generate(tmp_path / "generated", [*fresh(4), copy_of(3)])
    train, held_out = real_phantoms
    twin = {"image": train[9]["image"], "patient_id": "someone else"}
    with caplog.at_level(logging.INFO):
        report = privacy_check((train, [*held_out, twin]), summary_dir=tmp_path / "shared").run()
    assert report["held_out_copies_of_training"] == [[twin["image"], train[9]["image"]]]
    assert report["spaces"]["pixels"]["held_out"] == NUM_HELD_OUT  # without the twin
    for said in ("same picture", "Copies: 1 of 5", "shows real patients"):
        assert any(said in record.message for record in caplog.records)
    shared = {"privacy_summary.json", "privacy_summary.md", "distances.png"}
    assert {path.name for path in (tmp_path / "shared").iterdir()} == shared
    assert not shared & {path.name for path in (tmp_path / "report").iterdir()}
    text = (tmp_path / "shared" / "privacy_summary.json").read_text()
    found = json.loads(text)
    assert found == summary(report)
    assert found["verdict"]["num_copies"] == 1 and found["images"]["training"] == NUM_TRAIN
    assert found["num_held_out_copies_of_training"] == 1
    table = (tmp_path / "shared" / "privacy_summary.md").read_text()
    assert table == markdown(found) and found["verdict"]["text"] in table
    assert f"calibrated on {NUM_HELD_OUT + 1} held-out" in table
    sensitivity = found["sensitivity"]
    assert f"{sensitivity['found']} of {sensitivity['copies']} altered copies" in table
    for private in (str(tmp_path), train[3]["image"], "generated_dir", ".png"):
        assert private not in text.replace(json.dumps(found["provenance"]["command"]), "") and private not in table


def test_patients_with_several_images_are_looked_for_in_samples(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", fresh(4))
    assert privacy_check(real_phantoms).run()["link"] is None
    assert not (tmp_path / "report" / "links.png").exists()
    several = [
        [{**item, "patient_id": f"{side}{n // 2}"} for n, item in enumerate(items)]
        for side, items in zip("ab", real_phantoms, strict=True)
    ]
    report = privacy_check(several).run()
    assert report["link"]["head"] == {"num_patients": NUM_TRAIN // 2, "num_images": NUM_TRAIN - NUM_TRAIN % 2}
    assert report["link"]["samples"]["num_samples"] == 4
    assert (tmp_path / "report" / "links.png").is_file()
    assert link_markdown(report["link"]) in (tmp_path / "report" / "privacy_summary.md").read_text()


def test_altered_copies_are_near_but_not_the_same():
    image = phantom(0)
    first, again, other = (altered_copy(image, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == image.shape and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    assert 0.9 < np.corrcoef(first.flatten(), image.flatten())[0, 1] < 0.9999


# ---- flagged images are dropped --------------------------------------------------------------------------------------


@pytest.fixture
def checked(tmp_path, real_phantoms, privacy_check):
    """A generated folder with a copy, and the report of its check."""
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


def test_flagged_images_leave_the_folder_for_good(checked):
    folder, report = checked
    assert drop_flagged(folder, report) == ["images/0002.png"]
    assert is_dropped(folder)
    log = JobLog(folder, {**SETTINGS, "split": "train"}, keeps_folder=True)
    assert log.has(Item("0002"), folder / "images" / "0002.png")  # not made again
    assert len(radiograph_items(folder, "train", 0, 0)) == 2  # nor trained on
    assert drop_flagged(folder, report) == []
    assert is_dropped(folder)


def test_an_interrupted_drop_is_completed(checked):
    folder, report = checked
    moved = folder / "flagged" / "images" / "0002.png"
    moved.parent.mkdir(parents=True)
    (folder / "images" / "0002.png").rename(moved)
    assert drop_flagged(folder, report) == ["images/0002.png"]
    assert is_dropped(folder)


def test_reports_of_other_folders_are_refused(checked, tmp_path):
    folder, report = checked
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(DatasetError):
        drop_flagged(tmp_path / "other", report)
    with pytest.raises(DatasetError):
        drop_flagged(folder, tmp_path / "nothing")
    (folder / JOB_RECORD).unlink()
    with pytest.raises(DatasetError):
        drop_flagged(folder, report)
    assert (folder / "images" / "0002.png").is_file()
