"""The command: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, draw_radiographs
from PIL import Image
from script_module import load_script
from transformers import Dinov2Config, Dinov2Model

from common.errors import DatasetError, SettingsError
from common.evaluation.image_features import ImageFeatures, build_extractor

SCRIPT = REPOSITORY / "scripts" / "image_quality.py"


@pytest.fixture(scope="module")
def script():
    return load_script("image_quality")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 real images of 10 patients with a manifest, 12 fake ones, a small DINO encoder."""
    root = tmp_path_factory.mktemp("quality")
    draw_radiographs(root / "real" / "images", count=20, size=32)
    draw_radiographs(root / "fake", count=12, size=48)
    lines = [f"images/phantom_{i}.png,p{i // 2},{'val' if i < 18 else 'train'}" for i in range(20)]
    (root / "real" / "manifest.csv").write_text("\n".join(["image,patient_id,split", *lines]) + "\n")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14, image_size=28)
    Dinov2Model(config).save_pretrained(root / "dino")
    return root


def run(script, folder, output_dir, fake=None, **options):
    options = {
        "extractors": "dino",
        "dino_source": str(folder / "dino"),
        "num_resamples": 4,
        "image_size": 32,
        **options,
    }
    script.image_quality(str(folder / "real"), str(fake or folder / "fake"), output_dir=str(output_dir), **options)
    return json.loads((output_dir / "quality.json").read_text())


def test_writes_report_table_and_plot(script, folder, tmp_path, capsys):
    report = run(script, folder, tmp_path, real_split="val", seed=3)
    found = report["extractors"]["dino"]
    assert (found["num_real"], found["num_fake"]) == (18, 12)
    assert "share no patient" in found["real_real_floor"]["note"]
    assert report["provenance"]["seed"] == report["settings"]["seed"] == 3
    assert {"command", "git", "real", "fake", "real_split", "extractors"} <= report["provenance"].keys()
    assert report["skipped"] == []
    table = (tmp_path / "quality.md").read_text()
    assert f"| dino | real, fake | 18, 12 | {found['fd']:.4g} " in table and table in capsys.readouterr().out
    with Image.open(tmp_path / "quality.png") as picture:
        assert len(picture.getcolors(10**6)) > 4  # bars of three colours, text and background
    assert {path.name for path in tmp_path.iterdir()} == {"quality.json", "quality.md", "quality.png", "features"}


def test_a_set_and_itself_are_at_zero_and_a_list_of_files_is_read(script, folder, tmp_path):
    names = [f"real/images/phantom_{i}.png" for i in range(20)]
    listed = folder / "listed.txt"
    listed.write_text("# the same images\n\n" + "\n".join(names) + "\n")
    found = run(script, folder, tmp_path, fake=listed)["extractors"]["dino"]
    assert found["num_fake"] == 20
    assert found["fd"] < 1e-6 < found["real_real_floor"]["fd"]
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_a_second_run_reads_features_instead_of_encoding(script, folder, tmp_path, monkeypatch):
    first = run(script, folder, tmp_path / "a", cache_dir=str(tmp_path / "features"))

    def refuse(self, images):
        raise AssertionError("an image was encoded twice")

    monkeypatch.setattr(ImageFeatures, "_encode", refuse)
    second = run(script, folder, tmp_path / "b", cache_dir=str(tmp_path / "features"))
    assert second["extractors"] == first["extractors"]


def test_without_any_weights_given_the_shipped_encoder_is_taken(script, folder, tmp_path):
    report = run(script, folder, tmp_path, extractors=None, dino_source=None)
    fingerprint = build_extractor("dino", None, script.SHIPPED_DINO).fingerprint
    assert report["provenance"]["extractors"] == {"dino": fingerprint}


def test_quick_takes_some_images_and_few_resamples(script, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "QUICK_IMAGES", 9)
    report = run(script, folder, tmp_path, quick=True)
    found = report["extractors"]["dino"]
    assert (found["num_real"], found["num_fake"]) == (9, 9)
    assert report["settings"]["num_resamples"] == script.QUICK_RESAMPLES and report["provenance"]["quick"] is True
    assert found["real_real_floor"] is None  # and the plot can do without


def test_unreadable_files_are_listed_and_the_rest_is_done(script, folder, tmp_path):
    draw_radiographs(tmp_path / "fake", count=10, size=32)
    (tmp_path / "fake" / "phantom_3.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"quality\.json"):
        run(script, folder, tmp_path / "out", fake=tmp_path / "fake")
    report = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert report["extractors"]["dino"]["num_fake"] == 9
    assert [entry["path"] for entry in report["skipped"]] == [str(tmp_path / "fake" / "phantom_3.png")]


def test_impossible_requests_leave_nothing(script, folder, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    for options, error, message in [
        ({"fake": tmp_path / "none"}, DatasetError, "does not exist"),
        ({"fake": empty}, DatasetError, "no paths"),
        ({"real_split": "test"}, DatasetError, "no rows with split test"),
        ({"num_resamples": 1}, SettingsError, "num_resamples = 1"),
    ]:
        with pytest.raises(error, match=message):
            run(script, folder, tmp_path / "out", **options)
    with pytest.raises(DatasetError, match=r"list of files and has no split val"):
        script.list_images(str(empty), "val")
    assert not (tmp_path / "out").exists()


def test_a_mistyped_option_is_an_error_before_anything_runs(script, folder, tmp_path, monkeypatch, capsys):
    words = [str(folder / "real"), str(folder / "fake"), "--output_dir", str(tmp_path / "out"), "--extractors", "dino"]
    words += ["--dino_source", str(folder / "dino"), "--num_resample", "4"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    with pytest.raises(SystemExit) as stopped:
        script.run_command(script.image_quality)
    assert stopped.value.code != 0
    assert "--num_resample" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_is_missing_without_a_traceback(folder, tmp_path):
    words = [str(folder / "real"), str(folder / "fake"), "--output_dir", str(tmp_path / "out")]
    words += ["--extractors", "dino,inception", "--dino_source", str(folder / "dino")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "WeightsError: extractor inception" in done.stderr and "Traceback" not in done.stderr
