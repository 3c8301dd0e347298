"""The command with all its starts, in miniature."""

import json

import pytest
import torch
from conftest import REPOSITORY, draw_radiographs
from dental_data import TINY, write_labelled_folder
from script_module import load_script

from common.experiments.experiment import ExperimentError, read_cells
from common.experiments.label_efficiency import Cell
from common.networks.pixel_denoiser import PixelDenoiser

STARTS = ["none", "ddpm", "pixel_classifier", "ddpm_generated"]


@pytest.fixture(scope="module")
def script():
    return load_script("label_efficiency")


@pytest.fixture
def data(tmp_path):
    write_labelled_folder(tmp_path / "data", 10)
    draw_radiographs(tmp_path / "generated", count=4, size=48)
    denoiser = PixelDenoiser(**TINY, num_res_blocks=1, patch_size=3)
    for parameter in denoiser.parameters():  # a new one gives zeros, which would all be the same feature
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(denoiser.state_dict(), tmp_path / "denoiser.pt")
    return tmp_path


def weights_by_start(folder, starts):
    if isinstance(starts, dict):
        return starts
    return {name: "none" if name == "none" else str(folder / "denoiser.pt") for name in starts}


def run(script, folder, starts=STARTS, **options):
    options = {
        "output_dir": str(folder / "out"),
        "work_dir": str(folder / "work"),
        "starts": weights_by_start(folder, starts),
        "bundle_root": str(REPOSITORY / "bundles" / "dental_radiograph_segmentation"),
        "generated": str(folder / "generated"),
        "image_size": (48, 72),
        "overrides": {"amp": False, **{f"network_def#{key}": value for key, value in TINY.items()}},
        "quick": True,
        **options,
    }
    script.label_efficiency(str(folder / "data"), **options)


def test_all_starts_are_measured_and_reported_and_a_second_run_does_nothing(script, data):
    run(script, data)
    cells = dict(read_cells(data / "out", Cell))
    assert {(cell.method, cell.label_budget) for cell in cells} == {(name, n) for name in STARTS for n in (1, 5)}
    assert all(0 <= result["mean_pooled_iou"] <= 1 and result["n"] == 2 for result in cells.values())
    assert len({result["mean_pooled_iou"] for result in cells.values()}) > 4
    ddpm = json.loads((data / "out" / "cells" / "ddpm_n5_seed0_t1.json").read_text())
    assert ddpm["start"] == "denoiser.pt" and len(ddpm["start_sha256"]) == 64
    (pseudo,) = (data / "work" / "runs").glob("ddpm_generated_n5_seed0_t1_*/generated")
    assert 1 <= len(list((pseudo / "images").iterdir())) <= 2  # half of four, none without any class
    texts = "".join(path.read_text() for path in (data / "out").rglob("*.json"))
    assert str(data / "work") not in texts  # what is kept names no path of one machine but the data's
    assert "classifier on frozen DDPM features" in (data / "out" / "label_efficiency.md").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in (data / "out" / "cells").iterdir()}
    run(script, data)
    assert stamps == {path: path.stat().st_mtime_ns for path in (data / "out" / "cells").iterdir()}


def test_grids_of_a_file_choose_among_the_starts(script, data):
    (data / "grids.yaml").write_text("- {methods: [none]}\n- {methods: [ddpm], budgets: [7]}\n")
    run(script, data, ["none", "ddpm"], grids=str(data / "grids.yaml"))
    found = {(cell.method, cell.label_budget) for cell, _ in read_cells(data / "out", Cell)}
    assert found == {(name, n) for name in ("none", "ddpm") for n in (1, 5)}, "quick has its own budgets"
    (data / "grids.yaml").write_text("- {methods: [masked_images]}\n")
    with pytest.raises(ExperimentError, match="--methods"):
        run(script, data, ["none"], grids=str(data / "grids.yaml"))


def test_generated_labels_need_no_other_start(script):
    assert script.with_ensemble({"ddpm_generated": "a.pt"}) == {"ddpm_generated": "a.pt", "ddpm": "a.pt"}
    assert script.with_ensemble({"none": "none"}) == {"none": "none"}


def test_what_cannot_be_run_is_told_before_any_work(script, data):
    with pytest.raises(ExperimentError, match="quotes and all"):
        script.label_efficiency(str(data / "data"), output_dir=str(data / "out"), starts="{none: a/b.pt}")
    with pytest.raises(ExperimentError, match="give the folder of generated radiographs"):
        run(script, data, generated=None)
    with pytest.raises(ExperimentError, match="give both the same weights"):
        run(script, data, starts={"ddpm": "a.pt", "ddpm_generated": "b.pt"})
    assert not (data / "out").exists()
    run(script, data, starts=["none"])
    with pytest.raises(ExperimentError, match="learning_rate"):
        run(script, data, starts=["none"], learning_rate=0.1)
