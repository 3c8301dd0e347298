"""The command with its starts, in miniature."""

import json

import pytest
import torch
from conftest import REPOSITORY
from dental_data import TINY, write_labelled_folder
from script_module import load_script

from common.errors import SettingsError
from common.experiments.label_efficiency import Trial
from common.experiments.trials import read_trials
from common.networks.pixel_denoiser import PixelDenoiser


@pytest.fixture(scope="module")
def script():
    return load_script("label_efficiency")


@pytest.fixture
def data(tmp_path):
    write_labelled_folder(tmp_path / "data", 10)
    denoiser = PixelDenoiser(**TINY, num_res_blocks=1, patch_size=3)
    for parameter in denoiser.parameters():  # a new one gives zeros, whatever it is shown
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(denoiser.state_dict(), tmp_path / "denoiser.pt")
    return tmp_path


def run(script, folder, starts=("none", "ddpm"), **options):
    options = {
        "output_dir": str(folder / "out"),
        "work_dir": str(folder / "work"),
        "starts": {name: "none" if name == "none" else str(folder / "denoiser.pt") for name in starts},
        "bundle_root": str(REPOSITORY / "bundles" / "dental_radiograph_segmentation"),
        "image_size": (48, 72),
        "overrides": {"amp": False, **{f"network_def#{key}": value for key, value in TINY.items()}},
        "quick": True,
        **options,
    }
    script.label_efficiency(str(folder / "data"), **options)


def test_all_starts_are_measured_and_reported_and_a_second_run_does_nothing(script, data):
    run(script, data)
    table = data / "out" / "label_efficiency.csv"
    trials = dict(read_trials(table, Trial))
    assert {(trial.method, trial.label_budget) for trial in trials} == {
        (m, n) for m in ("none", "ddpm") for n in (1, 5)
    }
    assert all(0 <= figures["mean_pooled_iou"] <= 1 and figures["n"] == 2 for figures in trials.values())
    assert len({figures["mean_pooled_iou"] for figures in trials.values()}) > 2
    ddpm = trials[Trial("ddpm", 5, 0)]
    assert ddpm["start"] == "denoiser.pt" and len(ddpm["start_sha256"]) == 64
    assert "start_sha256" not in trials[Trial("none", 5, 0)]
    before = table.read_text()
    assert str(data) not in before + (data / "out" / "label_efficiency.md").read_text()
    assert "| DDPM |" in (data / "out" / "label_efficiency.md").read_text()
    assert json.loads((data / "out" / "settings.json").read_text())["quick"]
    run(script, data)
    assert table.read_text() == before


def test_grids_of_a_file_choose_among_the_starts(script, data):
    (data / "grids.yaml").write_text("- {methods: [masked_images]}\n")
    with pytest.raises(SettingsError):
        run(script, data, ["none"], grids=str(data / "grids.yaml"))


def test_what_cannot_be_run_is_told_before_any_work(script, data):
    with pytest.raises(SettingsError):
        script.label_efficiency(str(data / "data"), output_dir=str(data / "out"), starts="{none: a/b.pt}")
    assert not (data / "out").exists()
    run(script, data, starts=["none"])
    with pytest.raises(SettingsError):
        run(script, data, starts=["none"], learning_rate=0.1)
