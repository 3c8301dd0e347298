"""generate.yaml from its file, with a network of random weights and few channels."""

import csv

import numpy as np
import pytest
import torch
from conftest import randomise
from monai.bundle import ConfigWorkflow
from PIL import Image
from test_folder_generation import contents

from common.data.datalists import radiograph_items
from common.diffusion.noise_schedule import NoiseSchedule
from common.errors import CheckpointMismatchError, SettingsError, WeightsError, root_user_error
from common.networks.pixel_denoiser import PixelDenoiser
from common.networks.weights import load_weights, save_weights

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
    parts = {"schedule": NoiseSchedule("cosine", "epsilon", num_train_timesteps=1000), "image_size": [16, 24]}
    save_weights(denoiser, path, parts)
    return path


@pytest.fixture
def generate(repository, weights):
    """Run generate.yaml into a folder, as `python -m monai.bundle run` does."""

    def run(folder, **overrides):
        config = str(repository / BUNDLE / "configs" / "generate.yaml")
        settings = {
            "bundle_root": str(repository / BUNDLE),
            "output_dir": str(folder),
            "denoiser_path": str(weights),
            "device": "$torch.device('cpu')",
            "amp": False,
            "num_samples": 5,
            "batch_size": 2,
            "num_inference_steps": 3,
            **overrides,
        }
        workflow = ConfigWorkflow(config, logging_file=False, workflow_type=None, **settings)
        workflow.initialize()
        workflow.run()
        return folder

    return run


def rows_of(folder):
    with open(folder / "manifest.csv", newline="") as stream:
        return sorted(csv.DictReader(stream), key=lambda row: row["image"])


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())]


def test_pictures_manifest_and_sheet(generate, tmp_path):
    generate(tmp_path, trim=False)
    names = [f"images/{number:04d}.png" for number in range(5)]
    assert sorted(contents(tmp_path)) == sorted([*names, "manifest.csv", "contact_sheet.png"])
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


def test_other_settings_in_the_same_folder_are_refused(generate, weights, tmp_path):
    generate(tmp_path / "out", num_samples=1)
    before = contents(tmp_path / "out")
    other = PixelDenoiser(**TINY, num_res_blocks=1)
    load_weights(other, weights)
    changes = [{"seed": 1}, {"num_inference_steps": 4}, {"eta": 0.5}, {"bits": 16}, {"trim": False}]
    changes.append({"image_size": [24, 16]})
    for name, schedule in {
        "linear": NoiseSchedule("linear_beta", "epsilon", num_train_timesteps=1000),
        "long": NoiseSchedule("cosine", "epsilon", num_train_timesteps=4000),
        "velocity": NoiseSchedule("cosine", "v_prediction", num_train_timesteps=1000),
    }.items():
        path = tmp_path / f"{name}.pt"
        save_weights(other, path, {"schedule": schedule, "image_size": [16, 24]})
        changes.append({"denoiser_path": str(path)})
    for change in changes:
        with pytest.raises(RuntimeError) as caught:
            generate(tmp_path / "out", num_samples=1, **change)
        assert isinstance(root_user_error(caught.value), CheckpointMismatchError), change
        assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"image_size": [15, 24]}, SettingsError, "image_size"),
        ({"num_samples": 0}, SettingsError, "num_samples"),
        ({"bits": 12}, SettingsError, "bits"),
        ({"spacing": "lambda"}, SettingsError, "spacing"),
        ({"denoiser_path": "none.pt"}, WeightsError, "none"),
        ({"num_sample": 3}, SettingsError, "num_samples"),
    ],
)
def test_wrong_settings_are_refused_and_leave_no_folder(generate, tmp_path, change, error, named):
    with pytest.raises(RuntimeError) as caught:
        generate(tmp_path / "new", **change)
    found = root_user_error(caught.value)
    assert isinstance(found, error) and named in str(found)
    assert not (tmp_path / "new").exists()
