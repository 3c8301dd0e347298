"""Evaluation of a segmenter against reference masks, each image at its own size; `SegmentationEvaluator(...).run()`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset

from ..data.mask_transforms import GEOMETRY_KEY, label_map
from ..distributed import gathered, is_rank_zero, share
from ..fingerprint import network_sha256
from ..io import read_radiograph
from ..io.contact_sheet import save_contact_sheet
from ..io.segmentation_classes import ClassTable
from ..metrics import plain
from ..pipelines.folder_segmentation import legend_below, mask_tiles
from ..pipelines.segmenter import DISPLAYED
from ..progress import ProgressBar, stopwatch
from ..provenance import provenance
from .report import (
    GROUPS,
    Row,
    best_median_worst,
    by_group,
    cell,
    group_table,
    markdown_table,
    mean_sd,
    write_report,
    write_rows,
)
from .segmentation_metrics import SegmentationScore, score_mask, summarise_scores

logger = logging.getLogger(__name__)

Transform = Callable[[dict[str, Any]], Mapping[str, Any]]


def segment_and_score(
    network: nn.Module,
    inferer: Inferer,
    dataset: Sequence[Mapping[str, Any]],
    classes: ClassTable,
    device: torch.device | str,
    with_hd95: bool,
    postprocessing: Transform | None = None,
) -> Iterator[tuple[Mapping[str, Any], SegmentationScore]]:
    """Segment every image and compare with its mask, at the image's own size: pairs of item and score, in order.

    Args:
        network: gives logits; goes to `device`; in eval mode until all pairs are taken, then in that it was in.
        inferer: runs it, see `segmentation_inferer`.
        dataset: items with "image" [1, H', W'] as the network takes it, "geometry" as `PadResized` leaves it, "label"
            int64 [1, H, W] at the image's own size, and where there is one its spacing "image_spacing_mm" [2].
        classes: the labels.
        device: of network and images.
        with_hd95: measure HD95, too; in mm where the spacing is known, else in px.
        postprocessing: takes an item with logits [K, H', W'] under "pred" and leaves labels [1, H, W] or [H, W] there;
            None takes the class of the largest probability at the image's own size.

    Raises:
        ValueError: a label that is not of the image's own size, or holds what is no label.
    """
    with _evaluating(network, device):
        for index in ProgressBar(range(len(dataset)), desc="evaluate", unit="image"):
            item = dataset[index]
            prediction = segment(network, inferer, item, device, postprocessing)
            row, column = (float(number) for number in item.get("image_spacing_mm", (np.nan, np.nan)))
            spacing = None if np.isnan(row + column) else (row, column)
            yield item, score_mask(prediction, _labels(item), classes.num_labels, spacing, with_hd95)


def segment(
    network: nn.Module,
    inferer: Inferer,
    item: Mapping[str, Any],
    device: torch.device | str,
    postprocessing: Transform | None = None,
) -> NDArray[np.integer]:
    """Labels [H, W] of one item at the image's own size; arguments as of `segment_and_score`, the mode is not set."""
    with torch.no_grad():
        logits = inferer(plain(item["image"])[None].to(device), network)[0]
    if postprocessing is None:
        labels = label_map(logits, item[GEOMETRY_KEY])
    else:
        done = postprocessing({**item, "pred": logits})
        labels = done[DISPLAYED if DISPLAYED in done else "pred"].as_subclass(torch.Tensor)
    return labels.reshape(labels.shape[-2:]).cpu().numpy()


@dataclass
class SegmentationEvaluator:
    """Measure a segmenter on labelled images, class by class.

    Writes into output_dir, each file atomically: per_image.csv, evaluation.json (`summarise_scores` and provenance),
    table.md, and contact_sheet.png with the images of best, median and worst mean Dice. The processes of a torchrun job
    share the images; the first of them writes.
    """

    network: nn.Module  # gives logits
    inferer: Inferer  # runs it, see `segmentation_inferer`
    dataset: Sequence[Mapping[str, Any]]  # as of `segment_and_score`, each also with its "image_path"
    classes: ClassTable  # the labels
    device: torch.device  # of the network
    output_dir: str  # made if absent
    # as of `segment_and_score`; that of inference.yaml, so that what it gives is what is measured
    postprocessing: Transform | None = None
    num_examples: int = 3  # images each of best, median and worst on the contact sheet; 0 leaves it out
    # of the manifest that per_image.csv repeats, where an item has them
    columns: Sequence[str] = ("patient_id", "group", *GROUPS)

    def run(self) -> Row:
        """Evaluate all images, write the files, log the table; returns what evaluation.json holds. None: ValueError.

        Where another process of the job writes, it returns {}.
        """
        elapsed, mine = stopwatch(), []
        dataset: Any = Subset(self.dataset, share(range(len(self.dataset))))  # type: ignore[arg-type]
        arguments = self.network, self.inferer, dataset, self.classes, self.device, True, self.postprocessing
        for item, score in segment_and_score(*arguments):
            columns = {name: str(item[name]) for name in self.columns if name in item}
            mine.append(({"path": item["image_path"], **columns, **image_row(score, self.classes)}, score))
        scored = gathered(mine)
        if not is_rank_zero():
            return {}
        rows, scores = [row for row, _ in scored], [score for _, score in scored]
        source = {**provenance(self.device), "weights_sha256": network_sha256(self.network)}
        report = {
            **summarise_scores(scores, self.classes),
            "by_group": by_group(rows, "mean_dice"),
            "class_table": self.classes.name,
            "provenance": source,
        }
        write_rows(Path(self.output_dir) / "per_image.csv", rows)
        write_report(self.output_dir, report, markdown(report), ("evaluation.json", "table.md"))
        self._write_examples(scores)
        found = len(scores), elapsed(), Path(self.output_dir).resolve(), markdown(report)
        logger.info("%d images evaluated in %s: %s\n%s", *found)
        return report

    def _write_examples(self, scores: Sequence[SegmentationScore]) -> None:
        """Segment the chosen ones again: keeping the masks of all images could take more memory than there is."""
        rows, captions = [], []
        dice = [np.nan if mean is None else mean for mean in (mean_sd(score.dice)["mean"] for score in scores)]
        for label, index in best_median_worst(dice, self.num_examples):
            item = self.dataset[index]
            with _evaluating(self.network, self.device):
                prediction = segment(self.network, self.inferer, item, self.device, self.postprocessing)
            pixels = read_radiograph(item["image_path"]).pixels
            rows.append(mask_tiles(pixels, [_labels(item), prediction], self.classes))
            captions.append(f"{label}: mean Dice {dice[index]:.3f}, {Path(item['image_path']).name}")
        if rows:
            titles = ["image", "reference", "prediction"]
            path = Path(self.output_dir) / "contact_sheet.png"
            save_contact_sheet(rows, path, titles, captions, footer=legend_below(self.classes))


def image_row(score: SegmentationScore, classes: ClassTable) -> Row:
    """What per_image.csv says of one image's score; None where a class does not count."""
    row: Row = {f"mean_{name}": mean_sd(getattr(score, name))["mean"] for name in ("dice", "iou")}
    for index, entry in enumerate(classes.classes):
        values = {f"{entry.key}_{name}": float(getattr(score, name)[index]) for name in ("dice", "iou", "hd95")}
        row |= {name: None if np.isnan(value) else value for name, value in values.items()}
    return {**row, "hd95_unit": score.hd95_unit}


def markdown(report: Mapping[str, Any]) -> str:
    """The table of evaluation.json: a row for each class and their mean; HD95 in the units that occur."""
    units = [unit for unit in ("mm", "px") if any(row[f"hd95_{unit}"]["n"] for row in report["classes"].values())]
    lines = []
    for name, row in report["classes"].items():
        agreement = (cell(row[key], 3, missing="–") for key in ("dice", "iou", "pooled_iou"))
        distances = (cell(row[f"hd95_{unit}"], 1, missing="–") for unit in units)
        lines.append([name, str(row["dice"]["n"]), *agreement, *distances])
    means = (cell(report[name], 3, missing="–") for name in ("mean_dice", "mean_iou", "mean_pooled_iou"))
    lines.append(["mean", str(report["n"]), *means, *("" for _ in units)])
    headings = ["class", "images", "Dice ↑", "IoU ↑", "pooled IoU ↑", *(f"HD95 ({unit}) ↓" for unit in units)]
    note = (
        "\nMean ± sd over the images where the class is in prediction or reference, at their own size; pooled: over "
        "all pixels of all images. HD95 only where the class is in both.\n"
    )
    return markdown_table(headings, lines) + note + group_table(report.get("by_group"), "mean Dice ↑", 3)


@contextmanager
def _evaluating(network: nn.Module, device: torch.device | str) -> Iterator[None]:
    was_training = network.training
    network.to(device).eval()
    try:
        yield
    finally:
        network.train(was_training)


def _labels(item: Mapping[str, Any]) -> NDArray[np.integer]:
    return item["label"].as_subclass(torch.Tensor)[0].numpy()
