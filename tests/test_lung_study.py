"""Zero-shot lungs: the list of masks, the search, and the command in miniature: tune, score, stop, go on, pre-label."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_module import load_script
from tiny_bundles import generator_models

from common.data.phantom import draw_chest_phantom, draw_lung_mask
from common.errors import DatasetError, SettingsError
from common.evaluation.report import write_rows
from common.experiments import lung_choice
from common.experiments.lung_choice import EXCLUDED, INCLUDED
from common.experiments.lung_report import LABELS, write_report
from common.experiments.lung_study import FRAMINGS, LungCase, add_ellipses, balanced, lung_cases
from common.experiments.trials import QUICK_WARNING
from common.files import write_json

DEFINITIONS = "lungs incl. what lies behind the heart", "lung fields, heart excluded"  # as drawn; one says otherwise


def lung_folder(root, num_train, num_val, size=(72, 80)):
    """Phantoms with their lungs as masks, 0 and 255, listed in lung_masks.csv; images of two sources."""
    for folder in ("images", "lung_masks"):
        (root / folder).mkdir(parents=True)
    rows = []
    for number in range(num_train + num_val):
        pixels = (draw_chest_phantom(*size, seed=number)[0] * 255).round().to(torch.uint8).numpy()
        lungs = draw_lung_mask(*size, seed=number)[0].numpy().astype(np.uint8) * 255
        files = {"image": f"images/{number}.png", "mask_file": f"lung_masks/{number}.png"}
        Image.fromarray(pixels).save(root / files["image"])
        Image.fromarray(lungs).save(root / files["mask_file"])
        about = {"source": f"clinic{number % 2}", "mask_definition": DEFINITIONS[number % 2]}
        rows.append({**files, **about, "split": "train" if number < num_train else "val"})
    write_rows(root / "lung_masks.csv", rows)
    return root


def test_cases_of_a_split_come_with_their_masks_and_what_these_count_as_lung(tmp_path):
    folder = lung_folder(tmp_path / "data", num_train=2, num_val=1)
    (case,) = lung_cases(folder, "lung_masks.csv", "val")
    assert (case.name, case.source, case.definition) == ("images__2", "clinic0", DEFINITIONS[0])
    assert case.image.is_file() and (case.truth() == draw_lung_mask(72, 80, seed=2)[0].numpy()).all()
    assert [c.name for c in lung_cases(folder, "lung_masks.csv", "train")] == ["images__0", "images__1"]
    assert [c.heart for c in lung_cases(folder, "lung_masks.csv", None)] == [INCLUDED, EXCLUDED, INCLUDED]
    assert {c.heart for c in lung_cases(folder, "lung_masks.csv", None, EXCLUDED)} == {EXCLUDED}
    (folder / "bad.csv").write_text("image,mask_file\na,b\n")
    for name, split in (("other.csv", "val"), ("lung_masks.csv", "test"), ("bad.csv", "val")):
        with pytest.raises(DatasetError):
            lung_cases(folder, name, split)


def case_of(source, number=0, mask="m.png", heart=EXCLUDED):
    return LungCase(f"patient_{number}", Path("patient.png"), Path(mask), source, "visible lung", heart)


def test_a_subset_is_drawn_from_each_source_in_turn():
    cases = [case_of("clinic", number) for number in range(50)] + [case_of("ward", number) for number in range(3)]
    chosen = balanced(cases, 10, seed=0)
    assert [case.source for case in chosen] == ["clinic"] * 7 + ["ward"] * 3
    assert [case.name for case in chosen] == [case.name for case in balanced(cases, 10, seed=0)]
    assert balanced(cases, 10, seed=1) != chosen and balanced(cases, 100, seed=0) == cases


def test_ellipses_are_fitted_to_the_masks_of_their_own_group(tmp_path):
    cases, results = [], []
    for place, (source, top) in enumerate({"clinic": 4, "ward": 24}.items()):
        truth = np.zeros((64, 64), np.uint8)
        truth[top : top + 36, 6:28] = truth[top : top + 36, 36:58] = 255
        Image.fromarray(truth).save(tmp_path / f"{place}.png")
        cases.append(case_of(source, mask=tmp_path / f"{place}.png"))
        results.append({"dice": {}})
    add_ellipses(results, cases)
    assert all(result["dice"]["ellipses"] > 0.85 for result in results)  # one for both would reach two thirds


# ---- the report ------------------------------------------------------------------------------------------------------


def result(value, group="clinic"):
    return {"name": "x", "group": group, "dice": dict.fromkeys(LABELS, value), "segments": {"diffseg": 40}}


@pytest.mark.parametrize("quick", [False, True])
def test_the_table_has_every_method_and_definition_and_no_patient(tmp_path, quick):
    cases = [case_of(source) for source in ("clinic", "ward")]
    write_json(tmp_path / "zero_shot_lungs.json", {"settings": {"quick": quick}})
    framed = [] if quick else [{"group": "clinic", "dice": dict.fromkeys(FRAMINGS, 0.25)}]
    tuning = {"": {"num_images": 3, "sources": {"clinic": 3}}}
    results = [result(0.5), result(0.7, "ward")]
    report = write_report(tmp_path, results, framed, cases, tuning, torch.device("cpu"))
    text = (tmp_path / "zero_shot_lungs.md").read_text()
    assert all(label in text for label in LABELS.values())
    assert all((name in text) != quick for name in FRAMINGS) and ("0.250" in text) != quick
    assert [report["summary"][group]["otsu"]["n"] for group in ("all", "clinic", "ward")] == [2, 1, 1]
    assert "0.600 ± 0.141" in text and "clinic: visible lung; ward: visible lung" in text and "40 segments" in text
    assert report["provenance"]["command"] in text and text.startswith(QUICK_WARNING) == quick
    assert "patient_0" not in text + (tmp_path / "zero_shot_lungs.json").read_text()
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
    lung_folder(root / "data", num_train=4, num_val=3)
    with pytest.MonkeyPatch.context() as patch:  # a smaller search, of the same code
        patch.setattr(lung_choice, "SEGMENT_GRID", {"kmeans": {"clusters": (4,)}})
        patch.setattr(lung_choice, "CHOICE_GRID", {"attention": (0.0,)})
        run(script, root, tune=True)
    return root


def run(script, root, out="out", quick=True, **options):
    folders = {"output_dir": str(root / out), "work_dir": str(root / "work"), "bundle_root": str(root / "bundle")}
    script.zero_shot_lungs(str(root / "data"), quick=quick, **folders, **options)


def test_a_study_leaves_settings_table_masks_and_overlays(scored):
    out = scored / "out"
    tuned = json.loads((out / "tuned.json").read_text())
    assert tuned["tuning"]["num_images"] == 4 and set(tuned["choice"]) == {"diffseg", "kmeans", "otsu"}
    scores = json.loads((out / "zero_shot_lungs.json").read_text())["summary"]
    assert list(scores) == ["all", "clinic0, heart included", "clinic1, heart excluded"]
    assert scores["all"]["diffseg"]["n"] == 3
    assert 0 < scores["all"]["diffseg_picked_by_dice"]["mean"] <= 1
    assert (scored / "work/overlays.png").is_file()
    names = {"tuned.json", "zero_shot_lungs.json", "zero_shot_lungs.md", "zero_shot_lungs.png"}
    assert {path.name for path in out.iterdir()} == names  # nothing of a patient
    for number in (4, 5, 6):
        mask = np.asarray(Image.open(scored / "work" / "masks" / f"images__{number}.png"))
        assert mask.shape == (72, 80) and set(np.unique(mask)) <= {0, 255}


def test_a_stopped_study_goes_on_with_what_is_missing(scored, script):
    kept, missing = (scored / "work" / "images" / f"images__{number}.json" for number in (4, 5))
    before, stamp = missing.read_text(), kept.stat().st_mtime_ns
    missing.unlink()
    run(script, scored, tune=True)
    assert missing.read_text() == before and kept.stat().st_mtime_ns == stamp


def test_results_of_other_settings_are_not_mixed_and_hyperparameters_come_from_somewhere(scored, script, tmp_path):
    with pytest.raises(SettingsError):
        run(script, scored, out=tmp_path)  # no hyperparameters
    (tmp_path / "tuned.json").write_bytes((scored / "out" / "tuned.json").read_bytes())
    for out, options in (("out", {}), (tmp_path, {}), ("out", {"heart": "maybe"})):  # of the results, and of the work
        with pytest.raises(SettingsError):
            run(script, scored, out=out, quick=False, **options)


def test_a_folder_is_pre_labelled_without_any_mask(scored, script):
    out = scored / "labels"
    out.mkdir()
    (out / "tuned.json").write_bytes((scored / "out" / "tuned.json").read_bytes())
    script.zero_shot_lungs(
        str(scored / "data" / "images"), output_dir=str(out), segment=True, bundle_root=str(scored / "bundle")
    )
    labelled, scored_mask = (Image.open(path) for path in (out / "5_png.png", scored / "work/masks/images__5.png"))
    assert np.array_equal(np.asarray(labelled), np.asarray(scored_mask))
    assert len(list(out.glob("*_png.png"))) == 7


def test_each_source_is_scored_by_what_the_others_taught(scored, script):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lung_choice, "SEGMENT_GRID", {})
        patch.setattr(lung_choice, "CHOICE_GRID", {})
        folders = {"output_dir": str(scored / "loso"), "work_dir": str(scored / "loso_work")}
        options = {"bundle_root": str(scored / "bundle"), "leave_one_out": True, "framings": 2, "quick": True}
        script.zero_shot_lungs(str(scored / "data"), limit=2, **folders, **options)
    report = json.loads((scored / "loso" / "zero_shot_lungs.json").read_text())
    assert {name: about["sources"] for name, about in report["tuning"].items()} == {
        "clinic0": {"clinic1": 2},
        "clinic1": {"clinic0": 2},
    }
    groups = "clinic0, heart included", "clinic1, heart excluded"
    assert [report["summary"][group]["diffseg"]["n"] for group in groups] == [4, 3]  # of both splits
    assert all(report["framings"][group]["15 % down"]["n"] == 1 for group in groups)
