"""The grid holds every trial once; subsets are nested, balanced, of one image a patient, and follow their seed."""

from collections import Counter

import pytest
from tiny_benefit import labelled_folder

from common.errors import DatasetError, SettingsError
from common.evaluation.report import read_rows, write_rows
from common.experiments.benefit_trials import (
    ALL_REGIMES,
    EPOCH_REGIMES,
    NUM_RARE,
    REGIMES,
    STRATEGIES,
    Trial,
    draw_order,
    grid,
    labelled_split,
    rare_subset,
    stages,
    subset,
)

CLASSES = ["a", "b", "c"]


@pytest.mark.parametrize("num_steps", [1, 7, 300])
def test_all_regimes_take_the_same_number_of_steps(num_steps):
    assert {sum(steps for _, steps in stages(regime, num_steps)) for regime in ALL_REGIMES} == {num_steps}
    assert [kind for kind, _ in stages("pretrained", num_steps)] == ["synthetic", "real"]


def test_the_grid_has_every_trial_once_with_baselines_first():
    trials = grid(["probe", "densenet"], REGIMES, STRATEGIES, [1, 5], [100, 50], [0, 1])
    assert len(trials) == len(set(trials)) == 2 * 2 * 2 * (2 + 3 * 4 * 2)
    assert [trial.size for trial in trials] == sorted(trial.size for trial in trials)
    assert trials[0] == Trial("probe", "real_unaugmented", "none", 0, 50, 0) and trials[1].regime == "real"
    assert trials[2] == Trial("probe", "mixed", "variation", 1, 50, 0)
    assert {trial.times_steps for trial in trials} == {1}


def test_equal_epochs_are_of_the_network_alone_and_take_one_more_round_per_ratio():
    trials = grid(["probe", "densenet"], EPOCH_REGIMES, ["variation", "prior"], [1, 10], [50], [0])
    kinds = ("real_longer", "none"), ("mixed_epochs", "variation"), ("mixed_epochs", "prior")
    found = {(each.classifier, each.regime, each.strategy, each.ratio, each.times_steps) for each in trials}
    assert found == {("densenet", *kind, ratio, 1 + ratio) for kind in kinds for ratio in (1, 10)}


def people(per_class=20, films=3):
    """Patients with several films each; the first five of `a` have one of `b` as well."""
    items = [
        {"image": f"{name}{person}_{film}.png", "patient_id": f"{name}{person}", "label": name}
        for name in CLASSES
        for person in range(per_class)
        for film in range(films)
    ]
    return items + [{"image": f"both{person}.png", "patient_id": f"a{person}", "label": "b"} for person in range(5)]


def test_a_rare_class_has_few_and_the_others_share_the_rest():
    order = draw_order(people(), CLASSES, seed=0)
    chosen = rare_subset(order, "b", 20)
    counts = Counter(item["label"] for item in chosen)
    assert counts["b"] == NUM_RARE and counts["a"] == counts["c"] == 10
    assert [item["label"] for item in chosen[:NUM_RARE]] == ["b"] * NUM_RARE
    for name, size in (("b", 1000), ("nothing", 2)):
        with pytest.raises(SettingsError):
            rare_subset(order, name, size)


def test_subsets_are_nested_balanced_of_one_image_a_patient_and_follow_their_seed():
    items = people()
    order = draw_order(items, CLASSES, seed=0)
    for size in (1, 7, 24, 50):
        chosen = subset(order, size)
        counts = Counter(item["label"] for item in chosen)
        assert chosen == order[:size] and max(counts.values()) - min(counts[name] for name in CLASSES) <= 1
        assert len({item["patient_id"] for item in chosen}) == size
    assert draw_order(items, CLASSES, 1) == draw_order(items[::-1], CLASSES, 1)
    assert len({tuple(item["image"] for item in draw_order(items, CLASSES, seed)) for seed in range(4)}) == 4


def test_the_order_ends_where_a_class_has_no_patient_left():
    items = [item for item in people() if item["label"] != "c" or item["patient_id"] in ("c0", "c1")]
    order = draw_order(items, CLASSES, 0)
    assert Counter(item["label"] for item in order)["c"] == 2 and len(order) == 8
    with pytest.raises(SettingsError):
        subset(order, 9)


def test_a_patient_or_a_file_in_both_splits_and_a_single_class_are_refused(tmp_path):
    folder = labelled_folder(tmp_path / "data", 2, 1)
    items = read_rows(folder / "manifest.csv")
    train, test = (next(item for item in items if item["split"] == split) for split in ("train", "val"))
    one_class = [{**item, "label": items[0]["label"] if item["label"] == "plain" else ""} for item in items]
    for wrong in ([{**item, "patient_id": train["patient_id"]} for item in items], one_class):
        write_rows(folder / "manifest.csv", wrong)
        with pytest.raises(DatasetError):
            labelled_split(str(folder), None)
    write_rows(folder / "manifest.csv", [items[0], {**items[1], "label": ""}, *items[2:]])  # which is of no class
    assert [len(found) for found in labelled_split(str(folder), None)] == [5, 3, 3]
    (folder / test["image"]).write_bytes((folder / train["image"]).read_bytes())
    with pytest.raises(DatasetError):
        labelled_split(str(folder), None)


@pytest.mark.shared
def test_the_real_split_has_no_patient_in_both_and_room_for_a_thousand(shared_data):
    train, test, classes = labelled_split(str(shared_data / "cxr"), {"source": "kermany"})
    assert classes == ["normal", "pneumonia_bacteria", "pneumonia_virus"]
    assert not {item["patient_id"] for item in train} & {item["patient_id"] for item in test}
    assert Counter(item["label"] for item in test) == dict(zip(classes, (88, 176, 73), strict=True))
    assert all(len(subset(draw_order(train, classes, seed), 1000)) == 1000 for seed in range(5))
