"""The trials of the benefit of synthetic data, and the real images that each of them draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.datalists import assert_disjoint_patients, radiograph_items
from ..errors import DatasetError, SettingsError
from ..fingerprint import file_sha256
from ..seeding import Purpose, derive_seed

Item = Mapping[str, str]

UNAUGMENTED, REAL, MIXED, SYNTHETIC, PRETRAINED = "real_unaugmented", "real", "mixed", "synthetic", "pretrained"
REAL_REGIMES = (UNAUGMENTED, REAL)
SYNTHETIC_REGIMES = (MIXED, SYNTHETIC, PRETRAINED)
REGIMES = (*REAL_REGIMES, *SYNTHETIC_REGIMES)
# The paper's protocol: as many epochs as "real", so 1 + ratio times its steps; and real images for as many steps.
REAL_LONGER, MIXED_EPOCHS = "real_longer", "mixed_epochs"
EPOCH_REGIMES = (REAL_LONGER, MIXED_EPOCHS)
# One class with `NUM_RARE` images among `size` of the others: as it is, its images repeated, variations added to it.
RARE, RARE_REPEATED, RARE_MIXED = "rare", "rare_repeated", "rare_mixed"
RARE_REGIMES = (RARE, RARE_REPEATED, RARE_MIXED)
NUM_RARE = 10
ALL_REGIMES = (*REGIMES, *EPOCH_REGIMES, *RARE_REGIMES)
BASELINES = {RARE_REPEATED: RARE, RARE_MIXED: RARE}  # of the others: real
STAGES = {SYNTHETIC: ("synthetic",), PRETRAINED: ("synthetic", "real")}
STAGES |= dict.fromkeys((MIXED, MIXED_EPOCHS, RARE_REPEATED, RARE_MIXED), ("both",))  # of the others: real
VARIATION, INTERPOLATION, PRIOR = "variation", "interpolation", "prior"
UNLABELLED = "unlabelled"  # real images of the training split without their labels: what samples compete with
STRATEGIES = (VARIATION, INTERPOLATION, PRIOR, UNLABELLED)
NO_STRATEGY = "none"
PROBE, DENSENET = "probe", "densenet"
CLASSIFIERS = (PROBE, DENSENET)


@dataclass(frozen=True)
class Trial:
    """One training and its score."""

    classifier: str  # probe or densenet
    regime: str  # what it is trained on
    strategy: str  # of the synthetic images; "none" without them
    ratio: int  # synthetic images per real one; 0 without them
    size: int  # real images whose labels are known
    seed: int  # of the subset, and of all else that is random

    @property
    def times_steps(self) -> int:
        """How many times the steps of "real" it is trained for."""
        return 1 + self.ratio if self.regime in EPOCH_REGIMES else 1


@dataclass(frozen=True)
class Example:
    """One image to train on."""

    path: str  # of the file
    label: int  # class, from 0 on
    # paths of the real images that it shows or was made from; empty for samples of the prior
    sources: tuple[str, ...] = ()


def grid(
    classifiers: Sequence[str],
    regimes: Sequence[str],
    strategies: Sequence[str],
    ratios: Sequence[int],
    sizes: Sequence[int],
    seeds: Sequence[int],
) -> list[Trial]:
    """All trials, small ones first and seed by seed, so that what a stopped experiment leaves compares all regimes.

    Those of `EPOCH_REGIMES` are of the network alone: a probe has no epochs.
    """
    kinds = [(regime, NO_STRATEGY, 0) for regime in regimes if regime in (*REAL_REGIMES, RARE)]
    kinds += [(regime, NO_STRATEGY, n) for n in ratios for regime in regimes if regime in (REAL_LONGER, RARE_REPEATED)]
    added = [regime for regime in regimes if regime in (*SYNTHETIC_REGIMES, MIXED_EPOCHS)]
    kinds += [(regime, strategy, ratio) for strategy in strategies for ratio in ratios for regime in added]
    kinds += [(RARE_MIXED, VARIATION, ratio) for ratio in ratios if RARE_MIXED in regimes and VARIATION in strategies]
    return [
        Trial(name, *kind, size, seed)
        for size in sorted(sizes)
        for seed in seeds
        for name in classifiers
        for kind in kinds
        if name != PROBE or kind[0] not in EPOCH_REGIMES
    ]


def stages(regime: str, num_steps: int) -> list[tuple[str, int]]:
    """What a network is trained on, one after the other: pairs of "real", "synthetic" or "both", and steps.

    The steps are `num_steps` together in every regime; those of `EPOCH_REGIMES` are told more of them.
    """
    kinds = STAGES.get(regime, ("real",))
    first = num_steps // len(kinds)
    return [(kind, first) for kind in kinds[:-1]] + [(kinds[-1], num_steps - first * (len(kinds) - 1))]


# ---- labelled images, and nested, stratified subsets of them ---------------------------------------------------------


def labelled_split(
    dataset_dir: str,
    where: Mapping[str, Any] | None,
    limit_per_class: int | None = None,
    train_limit_per_class: int | None = None,
) -> tuple[list[Item], list[Item], list[str]]:
    """Training images, test images (the validation split) and class names of a folder whose manifest.csv has labels.

    Columns named by `where` must have the value given; the limits are of test and of training images of a class.
    Images without a label are no class.

    Raises:
        DatasetError: a patient or a file is in both, fewer than two classes, or the folder cannot be used.
    """
    train, test = ([*radiograph_items(dataset_dir, split, 0.1, 0, where=where)] for split in ("train", "val"))
    classes = sorted({item.get("label", "") for item in train} - {""})
    if len(classes) < 2:
        raise DatasetError(
            f"labels: found {classes}; expected two classes or more. Widen `where`, or label more images"
        )
    train, test = ([item for item in items if item.get("label") in classes] for items in (train, test))
    assert_disjoint_patients(train=train, val=test)
    both = {file_sha256(item["image"]) for item in train} & {file_sha256(item["image"]) for item in test}
    if both:
        raise DatasetError(f"data: {len(both)} files are in train and in val under other names; remove them from one")
    shown = sorted(_first_of_each(test, limit_per_class), key=lambda item: classes.index(item["label"]))
    return _first_of_each(train, train_limit_per_class), shown, classes


def _first_of_each(items: Sequence[Item], limit_per_class: int | None) -> list[Item]:
    """Items in their order, of each class at most so many."""
    seen: Counter[str] = Counter()
    chosen = []
    for item in items:
        seen[item["label"]] += 1
        if limit_per_class is None or seen[item["label"]] <= limit_per_class:
            chosen.append(item)
    return chosen


def draw_order(items: Sequence[Item], classes: Sequence[str], seed: int) -> list[Item]:
    """The order in which labelled images are drawn; a subset of n is its first n, and so part of every larger one.

    The classes take turns, so that their numbers differ by one at most, and each draw is an image of a patient who has
    none yet in any class: more films of one patient say little more. It ends where a class has no patient left.

    Items have "image", "patient_id" and "label"; those of other classes are left out.
    """
    queues: list[Iterator[Item]] = []  # of each class one image of each patient who has any, in random order
    for number, name in enumerate(classes):
        generator = np.random.default_rng(derive_seed(seed, Purpose.LABEL_BUDGET, number))
        by_patient: dict[str, list[Item]] = {}
        for film in sorted(items, key=lambda each: each["image"]):
            if film.get("label") == name:
                by_patient.setdefault(film["patient_id"], []).append(film)
        films = [by_patient[patient] for patient in sorted(by_patient)]
        films = [films[place] for place in generator.permutation(len(films))]
        queues.append(iter([each[int(generator.integers(len(each)))] for each in films]))
    used: set[str] = set()
    order: list[Item] = []
    while True:
        for queue in queues:
            item = next((each for each in queue if each["patient_id"] not in used), None)
            if item is None:
                return order
            used.add(item["patient_id"])
            order.append(item)


def rare_subset(order: Sequence[Item], rare: str, size: int) -> list[Item]:
    """The first `NUM_RARE` of a class, and the first `size` of the others; SettingsError where there are fewer."""
    own = [item for item in order if item["label"] == rare][:NUM_RARE]
    others = [item for item in order if item["label"] != rare][:size]
    if len(own) < NUM_RARE or len(others) < size:
        raise SettingsError(
            f"sizes: found {len(own)} images of {rare} and {len(others)} of others; expected {NUM_RARE} and {size}"
        )
    return own + others


def subset(order: Sequence[Item], size: int) -> list[Item]:
    """The first `size` of `draw_order`; SettingsError where there are fewer."""
    if not 1 <= size <= len(order):
        raise SettingsError(
            f"sizes: found {size}; expected 1 to {len(order)}, as many as can be drawn in equal classes with one image "
            "a patient"
        )
    return list(order[:size])
