"""One fine-tuning by the bundle's own train.yaml, and the measure that decides whether its weights are served."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from ..evaluation.segmentation_metrics import score_mask
from ..io.mask_files import read_mask
from .bundle import TRAINING, Bundle, RequestError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuningRequest:
    """What a client may choose of a training; names and meanings as in train.yaml.

    Attributes:
        max_epochs: rounds.
        epoch_length: steps of a round.
        batch_size: images of a step, at most as many as there are.
        learning_rate: peak; lower than that of a training from pre-trained weights.
        seed: of order, augmentation, dropout and of what is held out.
        val_split: share of the labels to hold out.
    """

    max_epochs: int = 6
    epoch_length: int = 10
    batch_size: int = 4
    learning_rate: float = 1e-4
    seed: int = 0
    val_split: float = 0.2

    @classmethod
    def of(cls, request: dict[str, Any]) -> FineTuningRequest:
        """From a client's request, whose other keys do not matter.

        Only numbers get through: to MONAI's parser a text that starts with $ is code.

        Raises:
            RequestError: a value of another type or out of range.
        """
        chosen: dict[str, Any] = {}
        for field in fields(cls):
            value = request.get(field.name, field.default)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (is_whole or (isinstance(field.default, float) and isinstance(value, float))):
                raise RequestError(f"{field.name}: found {value!r}; expected a number such as {field.default}.")
            chosen[field.name] = value
        smallest = min(chosen["max_epochs"], chosen["epoch_length"], chosen["batch_size"])
        if (
            smallest < 1
            or chosen["seed"] < 0
            or not 0 < chosen["learning_rate"] <= 1
            or not 0 <= chosen["val_split"] < 1
        ):
            raise RequestError(
                f"training: found {chosen}; expected max_epochs, epoch_length and batch_size of at least 1, a seed of "
                "at least 0, a learning_rate in (0, 1] and a val_split in [0, 1)."
            )
        return cls(**chosen)


def fine_tune(
    bundle: Bundle,
    weights: str | Path,
    train: Sequence[dict[str, str]],
    validate: Sequence[dict[str, str]],
    request: FineTuningRequest,
    folder: Path,
    device: torch.device,
) -> Path | None:
    """Train on from these weights.

    Args:
        bundle: whose train.yaml runs.
        weights: to start from, final convolution included.
        train: {"image", "label"} paths; labels hold the labels of the class table.
        validate: likewise; the best round on these is kept.
        request: how long and how fast.
        folder: of the run's files; one that is not there yet.
        device: to train on.

    Returns:
        The weights file of the best round, or None if no round counted as one.
    """
    steps = request.max_epochs * request.epoch_length
    labels = {"mask_values": "labels"}
    overrides: dict[str, Any] = {
        "bundle_root": str(bundle.folder),
        "output_dir": str(folder),
        "device": device,
        "init_weights": str(weights),
        "class_table": bundle.classes.name,
        "num_classes": bundle.classes.num_labels,
        "train#dataset#data": [{**item, **labels} for item in train],
        "validate#dataset#data": [{**item, **labels} for item in validate],
        "batch_size": min(request.batch_size, len(train)),
        "max_epochs": request.max_epochs,
        "epoch_length": request.epoch_length,
        "learning_rate": float(request.learning_rate),
        "warmup_steps": min(10, steps // 2),
        "ema_decay": 0.9,  # a short training: 0.99 would still be half the weights that it started from
        "val_interval": 1,
        "checkpoint_every_steps": steps + 1,  # nobody resumes it
        "seed": request.seed,
    }
    workflow = ConfigWorkflow(
        config_file=str(bundle.config(TRAINING)),
        meta_file=str(bundle.config("metadata.json")),
        logging_file=False,
        workflow_type="train",
        run_id="training",
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    (folder / "checkpoint_last.pt").unlink(missing_ok=True)
    written = folder / "model.pt"
    return written if written.is_file() else None


def measure(
    bundle: Bundle, weights: str | Path, items: Sequence[dict[str, str]], device: torch.device
) -> dict[str, Any]:
    """Dice of these weights on labelled images, at their own size, by the pipeline that serves them.

    Args:
        bundle: whose pipeline runs.
        weights: to measure.
        items: {"image", "label"} paths.
        device: to run on.

    Returns:
        "dice" over all pixels of all images for each class that the labels have, the background among them, and
        "mean_dice" over these; "images". A few pixels of a class that the labels lack would otherwise be worth as much
        as all of another class; so they count as background that was missed.
    """
    pipeline = bundle.pipeline(weights, device)
    number = bundle.classes.num_labels
    confusion: Any = np.zeros((number, number), np.int64)
    for item in items:
        mask = pipeline.segment(item["image"]).astype(np.int64)
        confusion += score_mask(mask, read_mask(item["label"]), number, with_hd95=False).confusion
    in_labels, in_masks = confusion.sum(1), confusion.sum(0)
    dice = {
        name: float(2 * confusion[label, label] / (in_labels[label] + in_masks[label]))
        for label, name in enumerate(bundle.classes.names)
        if in_labels[label]
    }
    return {"mean_dice": sum(dice.values()) / len(dice), "dice": dice, "images": len(items)}


def as_json(request: FineTuningRequest) -> dict[str, Any]:
    """The request in JSON types."""
    return asdict(request)
