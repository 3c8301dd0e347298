"""A folder with one of each fault: all are named, nothing is touched; of the samples that ship nothing is."""

import csv
import json

import numpy as np
import pytest
from conftest import REPOSITORY
from dicom_files import make, write
from PIL import Image, ImageDraw, ImageFont
from script_module import SCRIPTS, load_script

from common.data.phantom import draw_chest_phantom
from common.fingerprint import file_sha256
from common.intensity import stored_values

SIZE = 256
NORMAL = [f"normal_{seed}.png" for seed in range(4)]
PLANTED = {
    "unreadable": {"cut.png", "empty.png"},
    "polarity": {"inverted.png"},
    "range": {"dim.png"},
    "size": {"small.png", "long.png"},
    "text": {"name.png", "header.dcm"},
    "duplicate": {"copy.jpg"},
    "two splits": {"second_of_p3.png"},
}


def chest(seed, height=SIZE, width=SIZE):
    return draw_chest_phantom(height, width, seed)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))  # as for `python scripts/inspect_dataset.py`
    return load_script("inspect_dataset")


@pytest.fixture
def planted(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pictures = {name: chest(seed) for seed, name in enumerate(NORMAL)}
    pictures |= {"inverted.png": 1 - chest(10), "dim.png": 0.4 + 0.1 * chest(11), "small.png": chest(12, 128, 160)}
    pictures |= {"long.png": chest(13, 256, 500), "second_of_p3.png": chest(14), "cut.png": chest(15)}
    pictures["copy.jpg"] = chest(0) ** 1.3
    for name, pixels in pictures.items():
        Image.fromarray(stored_values(pixels, 8)).save(folder / name)
    named = Image.fromarray(stored_values(chest(16), 8))
    ImageDraw.Draw(named).text((8, 8), "DOE, JANE", fill=255, font=ImageFont.load_default(size=16))
    named.save(folder / "name.png")
    write(make(stored_values(chest(17), 8), BurnedInAnnotation="YES"), folder / "header.dcm")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:3000])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("not a radiograph")
    with open(folder / "manifest.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "patient_id", "split"])
        for name in [*pictures, "name.png", "header.dcm", "empty.png"]:
            patient = "normal_3.png" if name == "second_of_p3.png" else name
            writer.writerow([name, patient, "val" if name == "second_of_p3.png" else "train"])
    return folder


def report_of(script, folder, output, **settings):
    script.inspect_dataset(str(folder), output_dir=str(output), **settings)
    return json.loads((output / "inspection.json").read_text())


def test_each_planted_fault_is_named_and_nothing_else(script, planted, tmp_path, capsys):
    before = {path: file_sha256(path) for path in planted.rglob("*")}
    report = report_of(script, planted, tmp_path / "out")
    found = {}
    for each in report["findings"]:
        found.setdefault(each["kind"], set()).add(each["name"])
    assert found == PLANTED
    printed = capsys.readouterr().out
    assert all(name in printed for names in PLANTED.values() for name in names)
    assert report["chain"] == "cxr" and report["other_files"] == {".txt": 1} and report["images"] == 14
    assert "normal_3.png" in report["plan"]  # refused, for its two splits
    assert {path: file_sha256(path) for path in planted.rglob("*")} == before
    with Image.open(tmp_path / "out" / "inspection.png") as sheet:
        assert np.asarray(sheet).std() > 0


@pytest.mark.parametrize(
    ("bundle", "chain", "stage"),
    [
        ("cxr_autoencoder", "cxr", "latent_diffusion"),
        ("cxr_dino_latent_diffusion", "cxr", "latent_diffusion"),
        ("dental_radiograph_segmentation", "dental", "segmenter"),
    ],
)
def test_of_the_samples_that_ship_nothing_is_named(script, bundle, chain, stage, tmp_path):
    report = report_of(script, REPOSITORY / "bundles" / bundle / "samples", tmp_path)
    assert report["findings"] == [] and report["chain"] == chain and stage in report["plan"]
