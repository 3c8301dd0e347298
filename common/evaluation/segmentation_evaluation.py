"""Evaluation of a segmenter against reference masks, each image at its own size; `SegmentationEvaluator(...).run()`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from ..data.mask_transforms import GEOMETRY_KEY, label_map
from ..files import atomic_path
from ..fingerprint import network_sha256
from ..io import read_radiograph
from ..io.contact_sheet import save_contact_sheet
from ..io.segmentation_classes import ClassTable
from ..metrics import plain
from ..pipelines.segmenter import mask_tiles
from ..provenance import provenance
from .segmentation_metrics import SegmentationScore, score_mask, summarise_scores
from .segmentation_report import choose_examples, image_mean, image_row, markdown_table, write_image_rows

logger = logging.getLogger(__name__)

SHEET_TITLES = ["image", "reference", "prediction"]

Transform = Callable[[dict[str, Any]], Mapping[str, Any]]


class LabelledImages(Protocol):
    """A map-style data set of single images, not batches.

    Its items hold "image" [1, H', W'] as the network takes it, "geometry" as `PadResized` leaves it, "label" int64
    [1, H, W] at the image's own size, and, where there is one, its spacing "image_spacing_mm" [2].
    """

    def __len__(self) -> int:
        """Count the images."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Give one of them."""


def segment_and_score(
    network: nn.Module,
    inferer: Inferer,
    dataset: LabelledImages,
    classes: ClassTable,
    device: torch.device | str,
    with_hd95: bool,
    postprocessing: Transform | None = None,
) -> list[SegmentationScore]:
    """Segment every image and compare with its mask, at the image's own size.

    Args:
        network: gives logits; goes to `device` and runs in eval mode, and is left in the mode that it was in.
        inferer: runs it, see `segmentation_inferer`.
        dataset: labelled images.
        classes: the labels.
        device: of network and images.
        with_hd95: measure HD95, too; in mm where the spacing is known, else in px.
        postprocessing: takes an item with logits [K, H', W'] under "pred" and leaves labels [1, H, W] or [H, W] there;
            None takes the class of the largest probability at the image's own size.

    Returns:
        A score for each image, in order.

    Raises:
        ValueError: a label that is not of the image's own size, or holds what is no label.
    """
    return [score for _, score in _scored(network, inferer, dataset, classes, device, with_hd95, postprocessing)]


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
        labels = postprocessing({**item, "pred": logits})["pred"].as_subclass(torch.Tensor)
    return labels.reshape(labels.shape[-2:]).cpu().numpy()


class SegmentationEvaluator:
    """Measure a segmenter on labelled images, class by class.

    Writes into output_dir, each file atomically: per_image.csv, evaluation.json (`summarise_scores` and provenance),
    table.md, and contact_sheet.png with the images of best, median and worst mean Dice.

    Args:
        network: gives logits.
        inferer: runs it, see `segmentation_inferer`.
        dataset: labelled images, each also with its "image_path".
        classes: the labels.
        device: of the network.
        output_dir: made if absent.
        postprocessing: as of `segment_and_score`; that of inference.yaml, so that what it gives is what is measured.
        num_examples: images each of best, median and worst on the contact sheet; 0 leaves it out.
        columns: of the manifest that per_image.csv repeats, where an item has them.
        provenance: added to the provenance in evaluation.json (checkpoint, data version, ...).
        progress: show a progress bar.
    """

    def __init__(
        self,
        network: nn.Module,
        inferer: Inferer,
        dataset: LabelledImages,
        classes: ClassTable,
        device: torch.device | str,
        output_dir: str | Path,
        postprocessing: Transform | None = None,
        num_examples: int = 3,
        columns: Sequence[str] = ("patient_id", "group", "set"),
        provenance: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        self.network, self.inferer, self.dataset, self.classes = network, inferer, dataset, classes
        self.device, self.output_dir = torch.device(device), Path(output_dir)
        self.postprocessing, self.num_examples, self.columns = postprocessing, num_examples, tuple(columns)
        self.provenance, self.progress = dict(provenance or {}), progress

    def run(self) -> dict[str, Any]:
        """Evaluate all images, write the files, log the table; returns what evaluation.json holds.

        Raises:
            ValueError: no images, or as `segment_and_score`.
        """
        arguments = self.network, self.inferer, self.dataset, self.classes, self.device, True, self.postprocessing
        scores, rows = [], []
        for item, score in _scored(*arguments, progress=self.progress):
            columns = {name: str(item[name]) for name in self.columns if name in item}
            rows.append(image_row(item["image_path"], columns, score, self.classes))
            scores.append(score)
        report = {
            **summarise_scores(scores, self.classes),
            "class_table": self.classes.name,
            "provenance": {
                **provenance(self.device),
                "weights_sha256": network_sha256(self.network),
                **self.provenance,
            },
        }
        write_image_rows(rows, self.output_dir / "per_image.csv")
        table = markdown_table(report)
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str)
        for name, content in {"evaluation.json": text + "\n", "table.md": table}.items():
            with atomic_path(self.output_dir / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
        self._write_examples(scores)
        logger.info("segmentation of %d images, files in %s\n%s", len(scores), self.output_dir, table)
        return report

    def _write_examples(self, scores: Sequence[SegmentationScore]) -> None:
        """Segment the chosen ones again: keeping the masks of all images could take more memory than there is."""
        rows, captions = [], []
        for label, index in choose_examples(scores, self.num_examples):
            item = self.dataset[index]
            with _evaluating(self.network, self.device):
                prediction = segment(self.network, self.inferer, item, self.device, self.postprocessing)
            pixels = read_radiograph(item["image_path"]).pixels
            rows.append(mask_tiles(pixels, [_labels(item), prediction], self.classes))
            captions.append(f"{label}: mean Dice {image_mean(scores[index].dice):.3f}, {Path(item['image_path']).name}")
        if rows:
            save_contact_sheet(rows, self.output_dir / "contact_sheet.png", SHEET_TITLES, captions)


def _scored(
    network: nn.Module,
    inferer: Inferer,
    dataset: LabelledImages,
    classes: ClassTable,
    device: torch.device | str,
    with_hd95: bool,
    postprocessing: Transform | None,
    progress: bool = False,
) -> Iterator[tuple[Mapping[str, Any], SegmentationScore]]:
    with _evaluating(network, device):
        for index in tqdm(range(len(dataset)), desc="evaluate", unit="image", disable=not progress):
            item = dataset[index]
            prediction = segment(network, inferer, item, device, postprocessing)
            yield item, score_mask(prediction, _labels(item), classes.num_labels, _spacing_mm(item), with_hd95)


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


def _spacing_mm(item: Mapping[str, Any]) -> tuple[float, float] | None:
    row, column = (float(number) for number in item.get("image_spacing_mm", (math.nan, math.nan)))
    return None if math.isnan(row) or math.isnan(column) else (row, column)
