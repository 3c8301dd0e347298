"""Zero-shot lungs: the list of masks, the search, and the command in miniature: tune, score, stop, go on, pre-label."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_module import load_script
from tiny_bundles import generator_models
from tiny_lungs import lung_folder

from common.data.phantom import draw_lung_mask
from common.errors import DatasetError, SettingsError
from common.experiments import lung_study
from common.experiments.lung_choice import ChoiceSettings
from common.experiments.lung_report import LABELS, summarise, write_report
from common.experiments.lung_segments import OTSU, EncodedImage, SegmentSettings
from common.experiments.lung_study import LungCase, Tuned, coordinate_search, lung_cases, tune_method
from common.experiments.position_prior import EllipsePrior, dice
from common.experiments.trials import QUICK_WARNING
from common.files import write_json


def test_cases_of_a_split_come_with_their_masks(tmp_path):
    folder = lung_folder(tmp_path / "data", num_train=2, num_val=1)
    (case,) = lung_cases(folder, "lung_masks.csv", "val")
    assert (case.name, case.source, case.definition) == ("images__2", "clinic0", "drawn")
    assert case.image.is_file() and (case.truth() == draw_lung_mask(72, 80, seed=2)[0].numpy()).all()
    assert [c.name for c in lung_cases(folder, "lung_masks.csv", "train")] == ["images__0", "images__1"]
    (folder / "bad.csv").write_text("image,mask_file\na,b\n")
    for name, split in (("other.csv", "val"), ("lung_masks.csv", "test"), ("bad.csv", "val")):
        with pytest.raises(DatasetError):
            lung_cases(folder, name, split)


# ---- hyperparameters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Two:
    a: float = 0.0
    b: float = 0.0


def test_each_field_goes_to_its_best_candidate_and_stays_where_nothing_is_better():
    grid = {"a": (-1.0, 1.0, 2.0), "b": (3.0, 4.0)}
    best, score = coordinate_search(Two(), grid, lambda two: -((two.a - 1) ** 2) - (two.b - 4) ** 2, "test")
    assert best == Two(1.0, 4.0) and score == 0
    assert coordinate_search(Two(), grid, lambda _: 0.5, "test") == (Two(), 0.5)


def test_settings_survive_json():
    tuned = Tuned(EllipsePrior(0.4), {"diffseg": SegmentSettings(anchors=8)}, {"diffseg": ChoiceSettings(bias=0.4)})
    assert Tuned.from_plain(json.loads(json.dumps(asdict(tuned)))) == tuned


def test_tuning_learns_from_training_masks():
    """Lungs above where the prior has them, and a bias that lets nothing be lung: the search finds the way out."""
    truth = np.zeros((64, 64), bool)
    truth[8:30, 6:24] = truth[8:30, 40:58] = True
    image = torch.from_numpy(np.where(truth, 0.2, 0.8).astype(np.float32))[None]
    encoded = EncodedImage(image, torch.zeros(1, 1), (1, 1), {500.0: [torch.full((8, 8, 8, 8), 1 / 64)]})
    start = SegmentSettings(), ChoiceSettings(attention=0.0, bias=-20.0)
    _, choice, after = tune_method(OTSU, [encoded], [truth], EllipsePrior(), start, rounds=2)
    assert after > 0.95 > 0.8 > dice(EllipsePrior().mask((64, 64)), truth)
    assert choice.bias > -1


# ---- the report ------------------------------------------------------------------------------------------------------


def result(value, source="clinic"):
    return {"name": "x", "source": source, "dice": dict.fromkeys(LABELS, value), "segments": {"diffseg": 40}}


def test_means_are_taken_overall_and_per_source():
    summary = summarise([result(0.5), result(0.7), result(0.9, "ward")])
    assert list(summary) == ["all", "clinic", "ward"]
    assert summary["all"]["diffseg"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.2), "n": 3}
    assert summary["ward"]["otsu"] == {"mean": 0.9, "sd": None, "n": 1}


@pytest.mark.parametrize("quick", [False, True])
def test_the_table_has_every_method_and_definition_and_no_patient(tmp_path, quick):
    cases = [LungCase("patient_7", Path("patient_7.png"), Path("m.png"), s, "visible lung") for s in ("clinic", "ward")]
    write_json(tmp_path / "zero_shot_lungs.json", {"settings": {"quick": quick}})
    report = write_report(tmp_path, [result(0.5), result(0.7, "ward")], cases, {"num_images": 3}, torch.device("cpu"))
    text = (tmp_path / "zero_shot_lungs.md").read_text()
    assert all(label in text for label in LABELS.values())
    assert "0.600 ± 0.141" in text and "clinic: visible lung; ward: visible lung" in text and "40 segments" in text
    assert report["provenance"]["command"] in text and text.startswith(QUICK_WARNING) == quick
    assert "patient_7" not in text + (tmp_path / "zero_shot_lungs.json").read_text()
    assert Image.open(tmp_path / "zero_shot_lungs.png").format == "PNG"


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    return load_script("zero_shot_lungs")


@pytest.fixture(scope="module")
def scored(script, tmp_path_factory, tiny_dino):
    """A finished study, its bundle and its data."""
    root = tmp_path_factory.mktemp("lungs")
    generator_models(root / "bundle", tiny_dino)
    lung_folder(root / "data", num_train=3, num_val=3)
    with pytest.MonkeyPatch.context() as patch:  # a smaller search, of the same code
        patch.setattr(lung_study, "TIMESTEPS", (500.0,))
        patch.setattr(lung_study, "SEGMENT_GRID", {"diffseg": {"threshold": (1e-4,)}, "kmeans": {"clusters": (4,)}})
        patch.setattr(lung_study, "CHOICE_GRID", {"attention": (0.0,), "darkness": (1.0,)})
        run(script, root, tune=True)
    return root


def run(script, root, out="out", quick=True, **options):
    folders = {"output_dir": str(root / out), "work_dir": str(root / "work"), "bundle_root": str(root / "bundle")}
    script.zero_shot_lungs(str(root / "data"), quick=quick, **folders, **options)


def test_a_study_leaves_settings_table_masks_and_overlays(scored):
    out = scored / "out"
    tuned = json.loads((out / "tuned.json").read_text())
    assert tuned["tuning"]["num_images"] == 3 and set(tuned["choice"]) == {"diffseg", "kmeans", "otsu"}
    scores = json.loads((out / "zero_shot_lungs.json").read_text())["summary"]
    assert list(scores) == ["all", "clinic0", "clinic1"] and scores["all"]["diffseg"]["n"] == 3
    assert scores["all"]["diffseg_picked_by_dice"]["mean"] >= scores["all"]["diffseg"]["mean"] - 0.02
    assert (scored / "work/overlays.png").is_file()
    names = {"tuned.json", "zero_shot_lungs.json", "zero_shot_lungs.md", "zero_shot_lungs.png"}
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


def test_results_of_other_settings_are_not_mixed_and_hyperparameters_come_from_somewhere(scored, script, tmp_path):
    with pytest.raises(SettingsError):
        run(script, scored, out=tmp_path)  # no hyperparameters
    (tmp_path / "tuned.json").write_bytes((scored / "out" / "tuned.json").read_bytes())
    for out in ("out", tmp_path):  # of the results, and of the work
        with pytest.raises(SettingsError):
            run(script, scored, out=out, quick=False)


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
