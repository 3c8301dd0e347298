"""Subsets are nested, balanced, of one image a patient, and follow their seed."""

from collections import Counter

import pytest

from common.experiments.benefit_study import labelled_split
from common.experiments.benefit_subsets import SubsetError, class_names, draw_order, subset

CLASSES = ["a", "b", "c"]


def people(per_class=20, films=3):
    """Patients with several films each; the first five of `a` have one of `b` as well."""
    items = [
        {"image": f"{name}{person}_{film}.png", "patient_id": f"{name}{person}", "label": name}
        for name in CLASSES
        for person in range(per_class)
        for film in range(films)
    ]
    return items + [{"image": f"both{person}.png", "patient_id": f"a{person}", "label": "b"} for person in range(5)]


def test_subsets_are_nested_balanced_and_of_one_image_a_patient():
    order = draw_order(people(), CLASSES, seed=0)
    for size in (1, 7, 24, 50):
        chosen = subset(order, size)
        counts = Counter(item["label"] for item in chosen)
        assert chosen == order[:size] and max(counts.values()) - min(counts[name] for name in CLASSES) <= 1
        assert len({item["patient_id"] for item in chosen}) == size


def test_the_order_follows_the_seed_and_not_the_order_of_the_files():
    items = people()
    assert draw_order(items, CLASSES, 1) == draw_order(items[::-1], CLASSES, 1)
    orders = [tuple(item["image"] for item in draw_order(items, CLASSES, seed)) for seed in range(4)]
    assert len(set(orders)) == 4


def test_it_ends_where_a_class_has_no_patient_left():
    items = [item for item in people() if item["label"] != "c" or item["patient_id"] in ("c0", "c1")]
    order = draw_order(items, CLASSES, 0)
    assert Counter(item["label"] for item in order)["c"] == 2 and len(order) in (8,)
    with pytest.raises(SubsetError, match="expected 1 to 8"):
        subset(order, 9)


def test_images_without_label_are_no_class():
    assert class_names([*people(1), {"image": "x", "patient_id": "x", "label": ""}]) == CLASSES
    with pytest.raises(SubsetError, match="at least two classes"):
        class_names([{"image": "x", "patient_id": "x"}])


@pytest.mark.shared
def test_the_real_split_has_no_patient_in_both_and_room_for_a_thousand(shared_data):
    train, test, classes = labelled_split(str(shared_data / "cxr"), {"source": "kermany"})
    assert classes == ["normal", "pneumonia_bacteria", "pneumonia_virus"]
    assert not {item["patient_id"] for item in train} & {item["patient_id"] for item in test}
    assert Counter(item["label"] for item in test) == dict(zip(classes, (88, 176, 73), strict=True))
    for seed in range(5):
        assert len(subset(draw_order(train, classes, seed), 1000)) == 1000
