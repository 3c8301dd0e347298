"""The command: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import REPOSITORY, draw_radiographs, randomise
from monai.bundle import ConfigParser
from script_module import load_script
from test_diffusion_segmenter import make_tiny_segmenter
from test_pixel_denoiser import TINY

from common.data.datalists import DatasetError, radiograph_items
from common.data.mask_transforms import to_original
from common.experiments.pseudo_labels import PseudoLabelError
from common.io import read_radiograph
from common.io.mask_files import read_mask
from common.networks.weights import MissingWeightsError

SCRIPT = REPOSITORY / "scripts" / "label_generated.py"
CONFIG = {
    "bundle_root": ".",
    "classes": {"_target_": "common.io.segmentation_classes.class_table", "name": "grouped"},
    "network_def": {"_target_": "common.networks.diffusion_segmenter.DiffusionSegmenter", "num_classes": 6, **TINY},
    "preprocessing": {
        "_target_": "monai.transforms.Compose",
        "transforms": [
            {"_target_": "common.data.mask_transforms.LoadSpacedRadiographd", "keys": ["image"]},
            {"_target_": "common.data.mask_transforms.PadResized", "keys": ["image"], "size": [16, 24]},
        ],
    },
}


@pytest.fixture(scope="module")
def script():
    return load_script("label_generated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six generated images of 20 px with a manifest, two segmenters that find something, a config."""
    root = tmp_path_factory.mktemp("labelling")
    draw_radiographs(root / "generated" / "images", count=6, size=20)
    lines = [f"images/phantom_{number}.png,true" for number in range(6)]
    (root / "generated" / "manifest.csv").write_text("\n".join(["image,synthetic", *lines]) + "\n")
    (root / "inference.yaml").write_text(yaml.safe_dump(CONFIG))
    segmenter = make_tiny_segmenter(num_classes=6)
    randomise(segmenter, 0.3)
    for name in ("one", "two"):
        torch.save(segmenter.state_dict(), root / f"{name}.pt")
        head = segmenter.unet.out[2].conv.weight
        head.data.add_(torch.randn(head.shape), alpha=0.3)
    return root


def run(script, folder, output_dir, **options):
    options = {"weights": f"{folder / 'one.pt'}, {folder / 'two.pt'}", "config": folder / "inference.yaml", **options}
    script.label_generated(str(folder / "generated"), output_dir=str(output_dir), **options)
    with (output_dir / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_best_half_becomes_a_data_set_at_the_images_own_size(script, folder, tmp_path, capsys):
    everything = {row["patient_id"]: row for row in run(script, folder, tmp_path / "all", keep_share=1.0)}
    rows = run(script, folder, tmp_path / "half", keep_share=0.5)
    agreement = sorted((float(row["agreement"]) for row in everything.values()), reverse=True)
    assert len(everything) == 6 and agreement[2] > agreement[3] and len(rows) == 3
    assert sorted((float(row["agreement"]) for row in rows), reverse=True) == agreement[:3]
    assert all(everything[row["patient_id"]] == row for row in rows)
    for item in radiograph_items(tmp_path / "half", "train", val_fraction=0.0, seed=0):
        number = int(item["patient_id"].removeprefix("synthetic-"))
        source = read_radiograph(folder / "generated" / "images" / f"phantom_{number}.png").pixels
        assert torch.equal(read_radiograph(item["image"]).pixels, source)
        assert read_mask(item["mask"]).shape == (20, 20) and read_mask(item["mask"]).any()
    summary = json.loads((tmp_path / "half" / "pseudo_labels.json").read_text())
    assert (summary["images"], summary["kept"], summary["keep_share"]) == (6, 3, 0.5)
    assert summary["mean_agreement"] == pytest.approx(sum(agreement) / 6, abs=1e-5)
    assert len(set(summary["weights_sha256"])) == 2
    assert f"kept 3 of 6 images in {tmp_path / 'half'}" in capsys.readouterr().out


def test_the_mask_is_that_of_both_segmenters_together(script, folder, tmp_path):
    run(script, folder, tmp_path, keep_share=1.0)
    parser = ConfigParser(CONFIG)
    item = parser.get_parsed_content("preprocessing")({"image": folder / "generated" / "images" / "phantom_2.png"})
    assert item["image"].shape == (1, 16, 24)
    probabilities = 0
    for name in ("one", "two"):
        segmenter = make_tiny_segmenter(num_classes=6).eval()
        segmenter.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        with torch.no_grad():
            probabilities = probabilities + to_original(segmenter(item["image"][None])[0].softmax(0), item["geometry"])
    expected = probabilities.argmax(0).numpy()
    assert (read_mask(tmp_path / "masks" / "synthetic-0002.png") == expected).all()


def test_a_second_run_gives_the_same_and_a_damaged_set_is_finished(script, folder, tmp_path):
    run(script, folder, tmp_path / "one")
    whole = files_of(tmp_path / "one")
    run(script, folder, tmp_path / "two")
    for name in ("manifest.csv", "pseudo_labels.json", next(name for name in whole if name.startswith("masks"))):
        (tmp_path / "two" / name).unlink()
    run(script, folder, tmp_path / "two")
    assert files_of(tmp_path / "two") == whole
    with pytest.raises(PseudoLabelError, match="another set of images or labels"):
        run(script, folder, tmp_path / "two", keep_share=1.0)
    assert files_of(tmp_path / "two") == whole


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weights": "one.pt"}, PseudoLabelError, "expected two or more different files"),
        ({"weights": ("one.pt", "one.pt")}, PseudoLabelError, "expected two or more different files"),
        ({"weights": "absent.pt,gone.pt"}, MissingWeightsError, r"absent\.pt: no weights there"),
        ({"keep_share": 1.5}, PseudoLabelError, r"keep_share 1\.5"),
        ({"config": "absent.yaml"}, DatasetError, r"absent\.yaml: found no config there"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(script, folder, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        run(script, folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_config_without_network_and_weights_of_another_one_are_refused(script, folder, tmp_path):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({"classes": CONFIG["classes"]}))
    with pytest.raises(DatasetError, match="found no network_def, preprocessing"):
        run(script, folder, tmp_path / "out", config=tmp_path / "train.yaml")
    torch.save(make_tiny_segmenter(num_classes=3).state_dict(), tmp_path / "three.pt")
    with pytest.raises(PseudoLabelError, match=r"three\.pt: found weights of another network"):
        run(script, folder, tmp_path / "out", weights=[folder / "one.pt", tmp_path / "three.pt"])


def test_the_bundles_own_config_fits_its_network(script):
    if not (script.BUNDLE / "configs" / "inference.yaml").is_file():
        pytest.skip("needs the bundle's inference.yaml")
    parser = script.read_config(None)
    assert parser.get_parsed_content("network_def").num_classes == parser.get_parsed_content("classes").num_labels
    assert callable(parser.get_parsed_content("preprocessing"))


@pytest.mark.slow
def test_the_command_line_ends_with_one_line(folder, tmp_path):
    command = [sys.executable, str(SCRIPT), str(folder / "generated"), "--weights", "a.pt,b.pt"]
    command += ["--output_dir", str(tmp_path), "--config", str(folder / "inference.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("MissingWeightsError: a.pt: no weights there")
