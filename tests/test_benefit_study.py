"""Trials are trained on labels of their sources or of a probe, and scored; and the command in miniature."""

import json
from collections import Counter

import numpy as np
import pytest
from script_module import load_script
from tiny_benefit import labelled_folder, tiny_study
from tiny_bundles import generator_models

from common.errors import DatasetError, NonFiniteLossError, SettingsError
from common.evaluation.report import read_rows
from common.experiments.benefit_study import auc_by_class, scores_of
from common.experiments.benefit_trials import Trial


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_dino):
    return tiny_study(tmp_path_factory.mktemp("examples"), tiny_dino, 6, 1, num_views=1)


def trial(strategy, ratio=2, size=6, seed=0):
    return Trial("probe", "mixed", strategy, ratio, size, seed)


@pytest.mark.parametrize("strategy", ["variation", "interpolation", "prior", "unlabelled"])
def test_every_strategy_gives_the_ratio_in_balanced_classes(study, strategy):
    ratio = 1 if strategy == "unlabelled" else 2
    found = study.synthetic(trial(strategy, ratio))
    assert Counter(each.label for each in found) == dict.fromkeys(range(3), 2 * ratio)
    assert len({each.path for each in found}) == 6 * ratio
    assert found == study.synthetic(trial(strategy, ratio))
    real = {each.path: each.label for each in study.real(trial("none", 0))}
    assert real.keys().isdisjoint(each.path for each in found)  # unlabelled ones are of other patients
    for each in found:
        assert {real[source] for source in each.sources} <= {each.label}
        assert len(each.sources) == {"variation": 1, "interpolation": 2}.get(strategy, 0)


def test_equal_epochs_train_longer_on_the_same_images(study):
    longer, mixed = (
        Trial("densenet", name, kind, 2, 6, 0)
        for name, kind in (("real_longer", "none"), ("mixed_epochs", "variation"))
    )
    assert study.synthetic(longer) == [] and study.real(longer) == study.real(trial("none", 0))
    assert study.synthetic(mixed) == study.synthetic(trial("variation"))
    usual, more = study(Trial("densenet", "real", "none", 0, 6, 0)), study(longer)
    assert more["training_loss"] != usual["training_loss"] and more["num_images"] == usual["num_images"] == 6
    assert study(mixed)["num_images"] == 18


def test_a_rare_class_is_repeated_or_varied_and_scored_alone(tmp_path, tiny_dino):
    study = tiny_study(tmp_path, tiny_dino, 10, 2, num_views=1)
    plain, repeated, mixed = (
        Trial("densenet", *kind, 8, 0)
        for kind in (("rare", "none", 0), ("rare_repeated", "none", 2), ("rare_mixed", "variation", 2))
    )
    rare = study.real(plain)[:10]
    assert [each.label for each in rare] == [0] * 10 and len(study.real(plain)) == 18
    assert study.synthetic(plain) == [] and study.synthetic(repeated) == rare * 2
    made = study.synthetic(mixed)
    assert len(made) == 20 and {each.label for each in made} == {0}
    assert {each.sources[0] for each in made} == {each.path for each in rare}
    found = study(mixed)
    assert found["auc"] == found["auc_by_class"][0] and found["num_images"] == 38
    by_probe = study(Trial("probe", "rare_mixed", "variation", 2, 8, 0))
    assert by_probe["num_synthetic"] == 20 and 0 <= by_probe["auc"] <= 1


def test_subsets_of_a_seed_are_nested_and_what_there_are_too_few_of_refused(study):
    small, large = (study.real(trial("none", 0, size)) for size in (6, 12))
    assert large[:6] == small
    for too_many in (trial("none", 0, 19), trial("unlabelled", 3)):
        with pytest.raises(SettingsError):
            study.synthetic(too_many) if too_many.ratio else study.real(too_many)


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_auc_is_the_share_of_pairs_in_order_with_ties_as_a_half_and_the_mean_weighs_classes_alike():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    labels = np.array([0, 1, 1, 2, 2])
    pairs = [
        np.mean([(a > b) + (a == b) / 2 for a in p[labels == c] for b in p[labels != c]])
        for c, p in enumerate(probabilities.T)
    ]
    scores = scores_of(probabilities, labels)
    assert scores["auc_by_class"] == pytest.approx(pairs) and scores["auc"] == pytest.approx(np.mean(pairs))
    assert scores["accuracy"] == pytest.approx(0.8)
    assert auc_by_class(np.full((4, 2), 0.5), np.array([0, 1, 0, 1])) == [0.5, 0.5]  # all tied


@pytest.mark.parametrize(
    ("last", "labels", "error"), [(0.2, [0, 0], DatasetError), (np.nan, [0, 1], NonFiniteLossError)]
)
def test_what_cannot_be_scored_is_refused(last, labels, error):
    with pytest.raises(error):
        auc_by_class(np.array([[0.9, 0.1], [0.8, last]]), np.array(labels))


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    return load_script("synthetic_benefit")


@pytest.fixture(scope="module")
def done(script, tmp_path_factory, tiny_dino):
    """A finished quick run, its bundle and its data."""
    root = tmp_path_factory.mktemp("benefit")
    generator_models(root / "bundle", tiny_dino)
    labelled_folder(root / "data", 8, 2)
    run(script, root, root / "out")
    return root


def run(script, root, out, **changed):
    options = {"strategies": ["variation"], "regimes": ["real", "mixed"], "image_size": 32}
    options |= {"where": {"source": "clinic"}, "quick": True, "amp": False, "device": "cpu", "batch_size": 4}
    options |= {"work_dir": str(root / "work"), "bundle_root": str(root / "bundle"), "num_views": 1}
    script.synthetic_benefit(str(root / "data"), output_dir=str(out), **{**options, **changed})


def trials_of(folder):
    rows = [{**row, "date": ""} for row in read_rows(folder / "synthetic_benefit.csv")]
    return sorted(rows, key=lambda row: (row["classifier"], row["regime"]))


def test_a_run_leaves_trials_table_and_plots_without_paths_or_images(done):
    out = done / "out"
    assert len(trials_of(out)) == 2 * 2
    assert "--quick" in (out / "synthetic_benefit.md").read_text()
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".csv", ".json", ".md", ".png", ".lock"}
    for path in written:
        if path.suffix != ".png" and path.name != "synthetic_benefit.json":  # which has the command
            assert str(done) not in path.read_text()
    settings = json.loads((out / "synthetic_benefit.json").read_text())["settings"]
    assert settings["num_test_images"] == 6 and settings["training"]["num_steps"] == 2


def test_stopped_and_continued_is_as_never_stopped_and_images_can_be_made_before(done, script, tmp_path):
    expected, work = trials_of(done / "out"), {"work_dir": str(tmp_path / "work")}
    run(script, done, tmp_path / "out", generate_only=True, **work)
    made = sorted((tmp_path / "work" / "pool").rglob("*.png"))
    assert {path.name for path in made} == {path.name for path in (done / "work" / "pool").rglob("*.png")}
    assert not (tmp_path / "out").exists()
    run(script, done, tmp_path / "out", share=[0, 2], **work)
    assert len(trials_of(tmp_path / "out")) == 2
    for path in made[::3]:
        path.unlink()
    run(script, done, tmp_path / "out", **work)
    assert trials_of(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "changed", [{"strategies": "prior"}, {"regimes": ["both"]}, {"ratios": 5, "quick": False}, {"learning_rate": 0.1}]
)
def test_wrong_settings_are_refused_before_anything_is_done(done, script, tmp_path, changed):
    out = done / "out" if "learning_rate" in changed else tmp_path / "out"
    with pytest.raises(SettingsError):
        run(script, done, out, **changed)
    assert not (tmp_path / "out").exists()
