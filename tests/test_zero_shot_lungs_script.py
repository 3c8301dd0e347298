"""The command, in miniature: tune, score, stop, go on, pre-label."""

import json

import numpy as np
import pytest
from PIL import Image
from script_module import load_script
from tiny_lungs import lung_folder, zero_shot_bundle

from common.errors import SettingsError
from common.experiments import lung_study, lung_tuning
from common.experiments.lung_masks import LungMasksError
from common.experiments.trials import QUICK_WARNING


@pytest.fixture(scope="module")
def script():
    return load_script("zero_shot_lungs")


@pytest.fixture(scope="module")
def scored(script, tmp_path_factory, tiny_dino):
    """A finished study, its bundle and its data."""
    root = tmp_path_factory.mktemp("lungs")
    zero_shot_bundle(root / "bundle", tiny_dino)
    lung_folder(root / "data", num_train=3, num_val=3)
    with pytest.MonkeyPatch.context() as patch:  # a smaller search, of the same code
        patch.setattr(lung_study, "TIMESTEPS", (500.0,))
        patch.setattr(lung_tuning, "SEGMENT_GRID", {"diffseg": {"threshold": (1e-4,)}, "kmeans": {"clusters": (4,)}})
        patch.setattr(lung_tuning, "CHOICE_GRID", {"attention": (0.0,), "darkness": (1.0,)})
        run(script, root, tune=True)
    return root


def run(script, root, out="out", quick=True, **options):
    folders = {"output_dir": str(root / out), "work_dir": str(root / "work"), "bundle_root": str(root / "bundle")}
    script.zero_shot_lungs(str(root / "data"), quick=quick, **folders, **options)


def test_a_study_leaves_settings_table_masks_and_overlays(scored):
    out = scored / "out"
    tuned = json.loads((out / "tuned.json").read_text())
    assert tuned["tuning"]["num_images"] == 3 and set(tuned["choice"]) == {"diffseg", "kmeans", "otsu"}
    report = json.loads((out / "zero_shot_lungs.json").read_text())
    assert list(report["summary"]) == ["all", "clinic0", "clinic1"] and report["summary"]["all"]["diffseg"]["n"] == 3
    scores = report["summary"]["all"]
    assert scores["diffseg_picked_by_dice"]["mean"] >= scores["diffseg"]["mean"] - 0.02
    assert QUICK_WARNING in (out / "zero_shot_lungs.md").read_text() and (scored / "work/overlays.png").is_file()
    names = {"settings.json", "tuned.json", "zero_shot_lungs.json", "zero_shot_lungs.md", "zero_shot_lungs.png"}
    assert {path.name for path in out.iterdir()} == names  # nothing of a patient
    for number in (3, 4, 5):
        mask = np.asarray(Image.open(scored / "work" / "masks" / f"images__{number}.png"))
        assert mask.shape == (72, 80) and set(np.unique(mask)) <= {0, 255}


def test_a_stopped_study_goes_on_with_what_is_missing(scored, script):
    kept, missing = (scored / "work" / "images" / f"images__{number}.json" for number in (3, 4))
    before, stamp = missing.read_text(), kept.stat().st_mtime_ns
    missing.unlink()
    run(script, scored, tune=True)
    assert missing.read_text() == before and kept.stat().st_mtime_ns == stamp


def test_results_of_other_settings_are_not_mixed(scored, script, tmp_path):
    with pytest.raises(SettingsError):
        run(script, scored, quick=False)
    (tmp_path / "tuned.json").write_bytes((scored / "out" / "tuned.json").read_bytes())
    with pytest.raises(SettingsError):  # nor in the folder that is worked in
        run(script, scored, out=tmp_path, quick=False)


def test_a_folder_is_pre_labelled_without_any_mask(scored, script):
    out = scored / "labels"
    out.mkdir()
    (out / "tuned.json").write_bytes((scored / "out" / "tuned.json").read_bytes())
    script.zero_shot_lungs(
        str(scored / "data" / "images"), output_dir=str(out), segment=True, bundle_root=str(scored / "bundle")
    )
    labelled, scored_mask = (Image.open(path) for path in (out / "3_png.png", scored / "work/masks/images__3.png"))
    assert np.array_equal(np.asarray(labelled), np.asarray(scored_mask))
    assert len(list(out.glob("*_png.png"))) == 6


def test_hyperparameters_have_to_come_from_somewhere(scored, script, tmp_path):
    with pytest.raises(LungMasksError, match="--tune True"):
        run(script, scored, out=tmp_path)
