"""Which labelled radiographs a segmenter is trained on: nested, seeded subsets of those that have masks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..io.mask_files import read_mask, written_table
from ..io.segmentation_classes import OWN_LABELS, ClassTable
from ..io.segmentation_classes import class_table as find_table
from ..seeding import Purpose, derive_seed
from .mask_transforms import check_mask_values
from .readability import readable_radiographs


def labelled_radiographs(
    dataset_dir: str | os.PathLike[str],
    split: str,
    val_fraction: float,
    seed: int,
    report_dir: str | os.PathLike[str],
    max_unreadable_share: float = 0.5,
    label_budget: int | None = None,
    budget_seed: int = 0,
    mask_values: str | None = None,
    class_table: str | None = None,
    **selection: Any,
) -> list[dict[str, str]]:
    """List the radiographs of one split that have a mask, image and mask both readable.

    `dataset_dir` has a manifest.csv with a column `mask`; images without a mask do not count as unreadable. Of those
    with one, `label_budget` are taken, which ones by `budget_seed` (see `within_budget`), or with None all.
    `mask_values` is said of every item that does not say it itself, for `LoadMaskd`; without it, `class_table` is the
    table of the labels, by which they are recognised in the masks. All else is as of `readable_radiographs`.

    Returns:
        Items of `radiograph_items`, with the mask's path under "label" too, as transforms and MONAI Label name it.

    Raises:
        DatasetError: no image has a mask, too many files are unreadable, the budget is larger than what there is, or
            nothing tells what the values of the masks mean; or some have values without a label.
    """
    options: dict[str, Any] = {"max_unreadable_share": max_unreadable_share, "keys": ("image", "mask"), **selection}
    items = readable_radiographs(dataset_dir, split, val_fraction, seed, report_dir, **options)
    chosen = items if label_budget is None else within_budget(items, label_budget, budget_seed)
    labelled = [{**item, "label": item["mask"]} for item in chosen]
    if mask_values is None and class_table is not None:
        mask_values = recognised_values(items, find_table(class_table))
    if mask_values is None:
        return labelled
    labelled = [{**item, "mask_values": item.get("mask_values") or mask_values} for item in labelled]
    if class_table is not None:
        check_mask_values(labelled, find_table(class_table))
    return labelled


def recognised_values(items: Sequence[Mapping[str, str]], classes: ClassTable) -> str:
    """What the mask values of a data set mean, see `ClassTable.recognised`; masks that say it themselves do not count.

    Raises:
        DatasetError: all values may be labels of the table as well as those of a data set.
    """
    if all(value == label for meant in classes.mask_values.values() for value, label in meant.items()):
        return OWN_LABELS  # whichever they are, they mean the same
    values: set[int] = set()
    found: str | None = OWN_LABELS
    for item in items:
        if not item.get("mask_values") and not written_table(item["mask"]):
            values |= set(np.unique(read_mask(item["mask"])).tolist())
            found = classes.recognised(values)
            if found not in (None, OWN_LABELS):
                break
    if found is None:
        raise DatasetError(
            f"masks such as {items[0]['mask']} have no values but {sorted(values)}: these may be labels of class table "
            f"{classes.name}, as this bundle writes them, or values of {', '.join(classes.mask_values)}. Say which: "
            f"--mask_values {OWN_LABELS}, or --mask_values {next(iter(classes.mask_values))}"
        )
    return found


def within_budget(items: Sequence[dict[str, str]], label_budget: int, budget_seed: int) -> list[dict[str, str]]:
    """The first so many images of a seeded order: a smaller budget with the same seed is part of a larger one.

    Images of one group (near-duplicates and crops, manifest column `group`; else of one patient) come after the first
    images of all others, so that a small budget is as many different radiographs as it says.

    Raises:
        DatasetError: there are fewer images, or the budget is no positive number.
    """
    if not 1 <= label_budget <= len(items):
        raise DatasetError(f"label_budget: expected 1 to {len(items)}, the labelled images, found {label_budget}")
    order = np.random.default_rng(derive_seed(budget_seed, Purpose.LABEL_BUDGET)).permutation(len(items))
    seen: Counter[str] = Counter()
    ranked = []
    for place, index in enumerate(order):
        group = items[index].get("group", items[index].get("patient_id", str(index)))
        ranked.append((seen[group], place, items[index]))
        seen[group] += 1
    return [item for _, _, item in sorted(ranked, key=lambda each: each[:2])[:label_budget]]
