"""generate.yaml from its file, with a network of random weights and few channels."""

import csv
import json

import numpy as np
import pydicom
import pytest
import torch
from conftest import randomise
from monai.bundle import ConfigWorkflow
from PIL import Image

from common.data.datalists import radiograph_items
from common.errors import root_user_error
from common.networks.pixel_denoiser import PixelDenoiser

BUNDLE = "bundles/dental_radiograph_segmentation"
TINY = {
    "channels": [8, 16],
    "attention_levels": [False, True],
    "num_head_channels": 8,
    "norm_num_groups": 4,
    "patch_size": 1,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    denoiser = PixelDenoiser(**TINY, num_res_blocks=1)
    randomise(denoiser, 0.2)
    path = tmp_path_factory.mktemp("weights") / "denoiser.pt"
    torch.save(denoiser.state_dict(), path)
    return path


@pytest.fixture
def generate(repository, weights):
    """Run generate.yaml into a folder, as `python -m monai.bundle run` does."""

    def run(folder, **overrides):
        config = str(repository / BUNDLE / "configs" / "generate.yaml")
        knobs = {
            "output_dir": str(folder),
            "denoiser_path": str(weights),
            "device": "$torch.device('cpu')",
            "amp": False,
            "image_size": [16, 24],
            "num_samples": 5,
            "batch_size": 2,
            "num_inference_steps": 3,
            **{f"denoiser_def#{name}": value for name, value in TINY.items()},
            **overrides,
        }
        workflow = ConfigWorkflow(config, logging_file=False, workflow_type=None, **knobs)
        workflow.initialize()
        workflow.run()
        return folder

    return run


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder):
    with open(folder / "manifest.csv", newline="") as stream:
        return sorted(csv.DictReader(stream), key=lambda row: row["image"])


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())]


def test_pictures_manifest_and_sheet(generate, tmp_path):
    generate(tmp_path, trim=False)
    names = [f"images/{number:04d}.png" for number in range(5)]
    assert sorted(contents(tmp_path)) == sorted([*names, "manifest.csv", "generation.json", "contact_sheet.png"])
    rows = rows_of(tmp_path)
    assert [row["image"] for row in rows] == names
    for row, pixels in zip(rows, pictures(tmp_path), strict=True):
        assert (row["strategy"], row["method"], row["num_inference_steps"]) == ("unconditional", "ddim", "3")
        assert row["synthetic"] == "true" and row["sources"] == row["label"] == ""
        assert pixels.shape == (16, 24) and pixels.dtype == np.uint8 and pixels.std() > 1
        text = Image.open(tmp_path / row["image"]).text
        assert text["Synthetic"] == "true"
        assert (text["seed"], text["weights_sha256"]) == (row["seed"], row["weights_sha256"])
    assert len({pixels.tobytes() for pixels in pictures(tmp_path)}) == 5


def test_the_folder_is_a_data_set_of_patients_of_their_own(generate, tmp_path):
    generate(tmp_path / "plain")
    items = radiograph_items(tmp_path / "plain", "all", 0.0, seed=0)
    assert len({item["patient_id"] for item in items}) == len(items) == 5
    generate(tmp_path / "split", split="train")
    assert len(radiograph_items(tmp_path / "split", "train", 0.5, seed=0)) == 5


def test_the_seed_makes_the_files(generate, tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    generate(first)
    torch.rand(7)
    assert contents(generate(again)) == contents(first)
    theirs = [pixels.tobytes() for pixels in pictures(generate(other, seed=1))]
    assert set(theirs).isdisjoint(pixels.tobytes() for pixels in pictures(first))


def test_lost_images_are_made_again_as_they_were(generate, tmp_path):
    generate(tmp_path)
    before, rows = contents(tmp_path), rows_of(tmp_path)
    for name in ("images/0001.png", "images/0004.png", "contact_sheet.png"):
        (tmp_path / name).unlink()
    kept = tmp_path / "images" / "0002.png"
    stamp = kept.stat().st_mtime_ns
    generate(tmp_path)
    assert {**contents(tmp_path), "manifest.csv": b""} == {**before, "manifest.csv": b""}
    assert rows_of(tmp_path) == rows and kept.stat().st_mtime_ns == stamp


def test_a_folder_can_be_given_more_images(generate, tmp_path):
    generate(tmp_path / "grown", num_samples=2)
    generate(tmp_path / "grown")
    assert contents(tmp_path / "grown") == contents(generate(tmp_path / "at_once"))


def test_other_settings_in_the_same_folder_are_refused(generate, tmp_path):
    base = {"num_samples": 1, "num_train_timesteps": 1000}
    generate(tmp_path, **base)
    before = contents(tmp_path)
    for change in (
        {"seed": 1},
        {"num_inference_steps": 4},
        {"eta": 0.5},
        {"bits": 16},
        {"trim": False},
        {"image_size": [24, 16]},
        {"noise_schedule": "linear_beta"},
        {"num_train_timesteps": 4000},
        {"prediction_type": "v_prediction"},
    ):
        with pytest.raises(RuntimeError) as caught:
            generate(tmp_path, **{**base, **change})
        assert "was generated with other settings" in str(root_user_error(caught.value)), change
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [15, 24]}, "image_size: expected rows and columns, each a positive multiple of 2"),
        ({"num_samples": 0}, "num_samples: expected at least 1, found 0"),
        ({"bits": 12}, "bits: expected 8 or 16, found 12"),
        ({"spacing": "lambda"}, "multiplies the network's error"),
        ({"denoiser_path": "none.pt"}, "no weights there"),
        ({"num_sample": 3}, "unknown config key 'num_sample'; did you mean 'num_samples'"),
    ],
)
def test_wrong_knobs_are_refused_and_leave_no_folder(generate, tmp_path, change, message):
    with pytest.raises(RuntimeError) as caught:
        generate(tmp_path / "new", **change)
    assert message in str(root_user_error(caught.value))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_files_are_synthetic_secondary_captures_of_the_pictures(generate, tmp_path, bits):
    generate(tmp_path, num_samples=2, dicom=True, bits=bits)
    for number, pixels in enumerate(pictures(tmp_path)):
        header = pydicom.dcmread(tmp_path / "dicom" / f"{number:04d}.dcm")
        assert np.array_equal(header.pixel_array, pixels)
        assert header.ConversionType == "SYN" and "dental radiograph, unconditional" in header.SeriesDescription
    settings = json.loads((tmp_path / "generation.json").read_text())["settings"]
    assert settings["bits"] == bits and settings["dicom"] is True
