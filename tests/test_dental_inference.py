"""The dental bundle's inference and evaluation, as a user runs them, with a tiny network of random weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, randomise
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from test_bundles_run import run as bundle_run
from torch import nn

from common.data.phantom import draw_chest_phantom
from common.files import JOB_RECORD
from common.io.mask_files import read_mask
from common.io.segmentation_classes import class_table
from common.io.synthetic_dicom import write_synthetic_dicom
from common.networks.diffusion_segmenter import DiffusionSegmenter
from common.networks.weights import read_description, save_weights
from common.pipelines.job_log import LOG_NAME

BUNDLE = REPOSITORY / "bundles" / "dental_radiograph_segmentation"
SIZES = {
    "wide.png": (37, 61),
    "deep/wide.png": (61, 37),
    "tall.jpg": (83, 51),
    "film.dcm": (45, 77),
    "slice.nii.gz": (33, 51),
}
TINY: dict[str, Any] = {
    "channels": [8, 16],
    "attention_levels": [False, True],
    "num_head_channels": 8,
    "norm_num_groups": 8,
    "patch_size": 2,
}


def write_image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = draw_chest_phantom(*size, seed=seed)
    grey = (pixels[0] * 255).round().to(torch.uint8).numpy()
    if path.suffix == ".dcm":
        write_synthetic_dicom(
            pixels, path, identity=path.name, model="t", description="phantom", pixel_spacing=(0.2, 0.1)
        )
    elif path.suffix == ".gz":
        nibabel.save(nibabel.Nifti1Image(grey.T[..., None], np.diag([-0.1, -0.2, 1, 1])), path)
    else:
        Image.fromarray(grey).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of odd sizes in `images`, one of them broken, and the weights of a tiny network."""
    folder = tmp_path_factory.mktemp("dental")
    for seed, (name, size) in enumerate(SIZES.items()):
        write_image(folder / "images" / name, size, seed)
    (folder / "images" / "broken.png").write_text("not a picture")
    network = DiffusionSegmenter(6, num_res_blocks=1, **TINY)
    randomise(network, 0.2)
    save_weights(network, folder / "tiny.pt", {"class_table": "grouped", "image_size": [24, 32]})
    return folder


def overrides(folder: Path, name: str) -> dict[str, Any]:
    chosen = {"output_dir": str(folder / name), "weights_path": str(folder / "tiny.pt")}
    return {"bundle_root": str(BUNDLE), "dataset_dir": str(folder / "images"), **chosen}


def run(folder: Path, config: str, expect: int, **more: Any) -> str:
    return bundle_run("run", f"configs/{config}.yaml", expect, **{**overrides(folder, config), **more})


@pytest.fixture(scope="module")
def inferred(folder: Path) -> tuple[Path, str]:
    """What inference wrote, and said."""
    return folder / "inference", run(folder, "inference", expect=1, nifti=True)


def written(name: str, out: Path, kind: str) -> Path:
    return out / f"{name.replace('/', '__').replace('.', '_')}_{kind}"


@pytest.mark.slow
def test_every_mask_has_its_images_rows_and_columns_and_only_labels(inferred: tuple[Path, str]) -> None:
    out, _ = inferred
    found = set()
    for name, size in SIZES.items():
        mask = read_mask(written(name, out, "mask.png"))
        assert mask.shape == size, name
        assert np.array_equal(read_mask(written(name, out, "mask.nii.gz")), mask), name
        found |= set(np.unique(mask).tolist())
    assert found <= set(range(6)) and len(found) > 2


@pytest.mark.slow
def test_the_broken_file_is_reported_and_makes_the_command_fail(inferred: tuple[Path, str]) -> None:
    out, output = inferred
    assert "skipped.csv" in output and "broken.png" in output
    with (out / "skipped.csv").open() as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["broken.png"]


@pytest.mark.slow
def test_evaluation_against_what_inference_gave_is_perfect(inferred: tuple[Path, str], folder: Path) -> None:
    """The reference is the same network's own masks: anything but 1 would mean that the two do not do the same."""
    lines = [f"{name},{written(name, inferred[0], 'mask.png')},{name},val" for name in SIZES]
    lines.append("broken.png,,none,val")  # without a mask it is not looked at
    (folder / "images" / "manifest.csv").write_text("\n".join(["image,mask,patient_id,split", *lines]) + "\n")
    output = run(folder, "evaluate", expect=0)
    report = json.loads((folder / "evaluate" / "evaluation.json").read_text())
    assert report["n"] == len(SIZES)
    assert report["mean_dice"] == report["mean_iou"] == report["mean_pooled_iou"] == 1
    assert (folder / "evaluate" / "table.md").read_text().strip() in output
    assert "evaluate.yaml" in report["provenance"]["command"]
    assert sum(row["hd95_mm"]["n"] for row in report["classes"].values()) > 0
    with (folder / "evaluate" / "per_image.csv").open(newline="") as file:
        assert {row["hd95_unit"] for row in csv.DictReader(file)} == {"mm", "px"}
    assert (folder / "evaluate" / "contact_sheet.png").exists()


def test_windows_flips_and_clean_up_by_settings(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_image(images / "panoramic.png", (91, 183), 3)
    config = str(BUNDLE / "configs" / "inference.yaml")
    knobs: dict[str, Any] = {
        "sliding_window": True,
        "panoramic_size": [48, 96],
        "flips": True,
        "overlay": False,
        "sheet_rows": 0,
    }
    areas: dict[str, int] = {}
    none: dict[str, int] = {}
    most = dict.fromkeys(class_table("grouped").names[1:], 10**6)
    for name, least in {"all": none, "large": most}.items():
        chosen = {**overrides(folder, name), **knobs, "dataset_dir": str(images), "min_area_px": least}
        chosen["output_dir"] = str(tmp_path / name)
        workflow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **chosen)
        workflow.initialize()
        workflow.run()
        mask = read_mask(tmp_path / name / "panoramic_png_mask.png")
        assert mask.shape == (91, 183)
        areas[name] = (mask > 0).sum()
        made = {path.name for path in (tmp_path / name).iterdir()} - {".lock", JOB_RECORD, LOG_NAME}
        assert made == {"panoramic_png_mask.png", "areas.csv", "readable.csv", "skipped.csv"}
    assert areas["all"] > 0 and areas["large"] == 0


def test_monai_label_gets_a_mask_from_the_ids_that_it_reads(folder: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser.update(overrides(folder, "label"))
    parser["network_def"]["dropout"] = 0.3  # as its app does for uncertainty
    network = parser.get_parsed_content("network")
    assert {each.p for each in network.modules() if isinstance(each, nn.Dropout)} >= {0.3}
    for name, size in SIZES.items():
        data = parser.get_parsed_content("preprocessing")(
            {"image": str(folder / "images" / name), "mask": "of a manifest"}
        )
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0].detach()
        done = parser.get_parsed_content("postprocessing")(data)
        labels, stored = done["pred_displayed"], done["pred"]
        assert tuple(labels.shape) == size and labels.dtype == stored.dtype == torch.uint8
        if name.endswith(".nii.gz"):  # with this affine the file's order is what is seen, but for the axes
            assert torch.equal(stored.as_tensor()[..., 0].T, labels)
            np.testing.assert_allclose(stored.affine.numpy(), nibabel.load(folder / "images" / name).affine)
        else:
            assert torch.equal(stored.as_tensor().T, labels)


def test_metadata_tell_the_classes_and_the_version() -> None:
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    output = metadata["network_data_format"]["outputs"]["pred"]
    classes = class_table("grouped")
    assert output["channel_def"] == {str(label): name for label, name in enumerate(classes.names)}
    config = ConfigParser.load_config_file(str(BUNDLE / "configs" / "inference.yaml"))
    described = read_description(BUNDLE / "models" / "model.pt")
    assert output["num_channels"] == described["network"]["num_classes"] == classes.num_labels
    assert described["class_table"] == "grouped"
    assert config["segmenter"]["model"].split() == [BUNDLE.name, metadata["version"]]
