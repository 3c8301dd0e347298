"""Nested, stratified subsets of labelled radiographs: who is in the smaller one is in every larger one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import UserError
from ..seeding import Purpose, derive_seed

Item = Mapping[str, str]


class SubsetError(UserError, ValueError):
    """The data cannot give the subset that was asked for."""


def class_names(items: Sequence[Item]) -> list[str]:
    """The labels, sorted; images without one are no class.

    Raises:
        SubsetError: fewer than two.
    """
    found = sorted({item.get("label", "") for item in items} - {""})
    if len(found) < 2:
        raise SubsetError(f"labels: found {found}; expected at least two classes. Widen `where`, or label more images")
    return found


def draw_order(items: Sequence[Item], classes: Sequence[str], seed: int) -> list[Item]:
    """The order in which labelled images are drawn; a subset of n is its first n.

    The classes take turns, so that their numbers differ by one at most, and each draw is an image of a patient who has
    none yet in any class: more films of one patient say little more. It ends where a class has no patient left.

    Args:
        items: of the training split, with "image", "patient_id" and "label".
        classes: names; items of others are left out.
        seed: of the order.
    """
    queues = [
        _patients_in_order(items, name, derive_seed(seed, Purpose.LABEL_BUDGET, number))
        for number, name in enumerate(classes)
    ]
    used: set[str] = set()
    order: list[Item] = []
    while True:
        for queue in queues:
            item = next((each for each in queue if each["patient_id"] not in used), None)
            if item is None:
                return order
            used.add(item["patient_id"])
            order.append(item)


def _patients_in_order(items: Sequence[Item], name: str, seed: int) -> Iterator[Item]:
    """One image of each patient who has any of this class, in random order; an iterator, so that a turn goes on."""
    generator = np.random.default_rng(seed)
    by_patient: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda each: each["image"]):
        if item.get("label") == name:
            by_patient.setdefault(item["patient_id"], []).append(item)
    patients = sorted(by_patient)
    chosen = [by_patient[patients[place]] for place in generator.permutation(len(patients))]
    return iter([films[int(generator.integers(len(films)))] for films in chosen])


def subset(order: Sequence[Item], size: int) -> list[Item]:
    """The first `size` of `draw_order`.

    Raises:
        SubsetError: there are fewer.
    """
    if not 1 <= size <= len(order):
        raise SubsetError(
            f"sizes: found {size}; expected 1 to {len(order)}, as many as can be drawn in equal classes with one image "
            "a patient"
        )
    return list(order[:size])
