"""How well a mask agrees with its reference, per image and class.

Everything is measured at the image's original size; label 0, the background, is never counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from numpy.typing import NDArray

from ..io.segmentation_classes import ClassTable
from .report import Row, mean_sd


@dataclass(frozen=True)
class SegmentationScore:
    """Agreement on one image; each array [K] has one value for each class, NaN where it does not count."""

    dice: NDArray[np.float64]  # 2 |A ∩ B| / (|A| + |B|); NaN where the class is in neither mask
    iou: NDArray[np.float64]  # |A ∩ B| / |A ∪ B|; NaN likewise
    # 95th percentile Hausdorff distance; NaN where the class is missing from one of the masks
    hd95: NDArray[np.float64]
    hd95_unit: str  # "mm" or "px"
    confusion: NDArray[np.int64]  # pixels [K + 1, K + 1], rows the reference, columns the prediction


def score_mask(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    num_labels: int,
    spacing_mm: tuple[float, float] | None = None,
    with_hd95: bool = True,
) -> SegmentationScore:
    """Compare a mask with its reference.

    HD95 is the larger of the two directed distances' 95th percentiles, between the outlines (MONAI's). A class that
    one of the masks lacks has no outline to measure to: it costs Dice and IoU (0), and HD95 leaves it out.

    Masks are labels [H, W]; num_labels counts the background. Spacing is down the rows, then along the columns; None
    gives HD95 in pixels. HD95 costs far more time than the rest; without it is NaN for every class.

    Raises:
        ValueError: sizes that differ, or labels outside 0 to num_labels - 1.
    """
    confusion = _confusion(prediction, reference, num_labels)
    common = np.diag(confusion)[1:].astype(np.float64)
    total = (confusion.sum(0) + confusion.sum(1))[1:]
    hd95 = np.full(num_labels - 1, np.nan)
    if with_hd95:
        hd95[:] = [_hd95(prediction == label, reference == label, spacing_mm) for label in range(1, num_labels)]
    with np.errstate(invalid="ignore"):  # 0 / 0 where the class is in neither
        dice, iou = 2 * common / total, common / (total - common)
    return SegmentationScore(dice, iou, hd95, "px" if spacing_mm is None else "mm", confusion)


def summarise_scores(scores: Sequence[SegmentationScore], classes: ClassTable) -> Row:
    """Means over images and classes, as plain numbers for JSON, each `mean_sd` over what counts.

    Returns:
        "classes": for each class Dice, IoU and HD95, the latter under "hd95_mm" and "hd95_px" so that units never mix,
        and "pooled_iou" over all pixels of all images (None where the class never occurs); "mean_dice", "mean_iou":
        mean over classes of these means (images count the same within a class, classes the same in the mean);
        "mean_pooled_iou": mIoU as the semantic segmentation literature has it; "images": mean and sd over images of
        the image's own mean over classes.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("summary of segmentation scores: found no scores; expected one image or more.")
    confusion = np.sum([score.confusion for score in scores], axis=0)
    by_class: dict[str, Row] = {}
    for index, entry in enumerate(classes.classes):
        row: Row = {name: mean_sd(getattr(score, name)[index] for score in scores) for name in ("dice", "iou")}
        for unit in ("mm", "px"):
            row[f"hd95_{unit}"] = mean_sd(score.hd95[index] for score in scores if score.hd95_unit == unit)
        label = index + 1
        union = confusion[label].sum() + confusion[:, label].sum() - confusion[label, label]
        by_class[entry.name] = {**row, "pooled_iou": float(confusion[label, label] / union) if union else None}
    return {
        "n": len(scores),
        "mean_dice": mean_sd(row["dice"]["mean"] for row in by_class.values())["mean"],
        "mean_iou": mean_sd(row["iou"]["mean"] for row in by_class.values())["mean"],
        "mean_pooled_iou": mean_sd(row["pooled_iou"] for row in by_class.values())["mean"],
        "images": {name: mean_sd(mean_sd(getattr(s, name))["mean"] for s in scores) for name in ("dice", "iou")},
        "classes": by_class,
    }


def _confusion(prediction: NDArray[np.integer], reference: NDArray[np.integer], num_labels: int) -> NDArray[np.int64]:
    if prediction.shape != reference.shape or prediction.ndim != 2:
        raise ValueError(
            f"segmentation score: found masks {prediction.shape} and {reference.shape}; expected [H, W], both the same."
        )
    for name, mask in {"prediction": prediction, "reference": reference}.items():
        if mask.min() < 0 or mask.max() >= num_labels:
            raise ValueError(
                f"segmentation score: found labels from {mask.min()} to {mask.max()} in the {name}; "
                f"expected 0 to {num_labels - 1}."
            )
    pairs = reference.astype(np.int64) * num_labels + prediction
    return np.bincount(pairs.ravel(), minlength=num_labels**2).reshape(num_labels, num_labels)


def _hd95(one: NDArray[np.bool_], other: NDArray[np.bool_], spacing_mm: tuple[float, float] | None) -> float:
    if not one.any() or not other.any():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes to itself
        distance = compute_hausdorff_distance(
            torch.from_numpy(one)[None, None].float(),
            torch.from_numpy(other)[None, None].float(),
            include_background=True,  # the one channel is the class
            percentile=95,
            spacing=list(spacing_mm) if spacing_mm else None,
        )
    return float(distance)
