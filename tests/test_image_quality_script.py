"""The command: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import json

import pytest
from conftest import draw_radiographs
from PIL import Image
from script_module import load_script

from common.errors import DatasetError, SettingsError, WeightsError
from common.evaluation.image_features import build_extractor


@pytest.fixture(scope="module")
def script():
    return load_script("image_quality")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_dino):
    """20 real images of 10 patients with a manifest, 12 fake ones, a small DINO encoder."""
    root = tmp_path_factory.mktemp("quality")
    draw_radiographs(root / "real" / "images", count=20, size=32)
    draw_radiographs(root / "fake", count=12, size=48)
    lines = [f"images/phantom_{i}.png,p{i // 2},{'val' if i < 18 else 'train'}" for i in range(20)]
    (root / "real" / "manifest.csv").write_text("\n".join(["image,patient_id,split", *lines]) + "\n")
    (root / "dino").symlink_to(tiny_dino)
    return root


def run(script, folder, output_dir, fake=None, **options):
    small = {"extractors": "dino", "dino_source": str(folder / "dino"), "num_resamples": 4, "image_size": 32}
    options = {**small, **options}
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
    with pytest.raises(DatasetError):
        run(script, folder, tmp_path / "out", fake=tmp_path / "fake")
    report = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert report["extractors"]["dino"]["num_fake"] == 9
    assert [entry["path"] for entry in report["skipped"]] == [str(tmp_path / "fake" / "phantom_3.png")]


def test_impossible_requests_leave_nothing(script, folder, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    for options, error in [
        ({"fake": tmp_path / "none"}, DatasetError),
        ({"fake": empty}, DatasetError),
        ({"real_split": "test"}, DatasetError),
        ({"num_resamples": 1}, SettingsError),
        ({"extractors": "dino,inception"}, WeightsError),  # its weights were not given
    ]:
        with pytest.raises(error):
            run(script, folder, tmp_path / "out", **options)
    with pytest.raises(DatasetError):
        script.list_images(str(empty), "val")
    assert not (tmp_path / "out").exists()
