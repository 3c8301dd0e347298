"""MONAI Label's training: from the datastore's final labels to weights that are served only if they are better.

A fine-tuning runs the bundle's own train.yaml; what is held out, and the measure that decides, stay the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import name_to_device
from pydantic import Field

from ..errors import DatasetError, UserError
from ..evaluation.segmentation_metrics import score_mask
from ..files import read_json, write_json
from ..io.mask_files import read_mask
from ..networks.weights import described
from .bundle import METADATA, TRAINING, Bundle
from .client_files import image_size, read_label, readable_file
from .client_requests import Strict, parsed
from .weights_store import WeightsStore

FEWEST_TO_HOLD_OUT = 3  # labels; with fewer all are trained on
STATS = ("parent", "started_from", "is_held_out", "before", "after", "verdict", "request")

_logger = logging.getLogger(__name__)

Item = dict[str, str]  # of train.yaml: paths of an "image" and its "label", and that the label's values are labels


class TrainingParameters(Strict):
    """What a client may choose of a training; names and meanings as in train.yaml."""

    max_epochs: Annotated[int, Field(ge=1)] = 6  # rounds
    epoch_length: Annotated[int, Field(ge=1)] = 10  # steps of a round
    batch_size: Annotated[int, Field(ge=1)] = 4  # images of a step, at most as many as there are
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4  # peak; lower than in training from pre-trained weights
    seed: Annotated[int, Field(ge=0)] = 0  # of order, augmentation, dropout and of what is held out
    val_split: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of the labels to hold out
    # Of the weights, to serve again in place of training.
    use_version: Annotated[int | None, Field(exclude=True)] = None


class RadiographTrainTask(TrainTask):
    """Fine-tunes what is served now on the final labels; keeps the result only if it beats it on held-out ones."""

    def __init__(self, bundle: Bundle, store: WeightsStore) -> None:
        super().__init__(f"Fine-tune {bundle.name} on the submitted labels")
        self.bundle = bundle
        self.store = store

    def config(self) -> dict[str, Any]:
        """What a client may set, with its defaults."""
        return TrainingParameters().model_dump()

    def stats(self) -> dict[str, Any]:
        """Versions of the weights and what they scored, without names of images: `info` shows it to everybody."""
        infos = ((str(version), self.store.info(version)) for version in self.store.versions())
        history = {version: {key: info[key] for key in STATS if key in info} for version, info in infos}
        return {"served_version": self.store.served(), "versions": history}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, measure, publish; or, with "use_version", go back to an earlier version.

        Returns:
            What happened, in JSON types: whether weights were published and why, Dice before and after, what was
            trained on and measured on, what was left out.

        Raises:
            UserError: a request or labels that cannot be used; nothing has changed.
        """
        chosen, device = parsed(TrainingParameters, request), torch.device(name_to_device(request.get("device")))
        if chosen.use_version is not None:
            self.store.serve(chosen.use_version)
            _logger.info("serving version %d of the weights", chosen.use_version)
            return {"published": False, "served_version": chosen.use_version}
        with ExitStack() as files:
            items, left_out = self._labelled(datastore, files)
            return self._train(items, left_out, chosen, device)

    def _train(
        self, items: dict[str, Item], left_out: dict[str, str], chosen: TrainingParameters, device: torch.device
    ) -> dict[str, Any]:
        train, held_out = hold_out(list(items), chosen.val_split, chosen.seed, self.store.folder)
        if not train:
            raise DatasetError(
                f"training: found {len(items)} images with a final label to train on, {len(left_out)} that cannot be "
                "read; expected one or more. Submit labels first."
            )
        measured_on = held_out or train
        measured = [items[name] for name in measured_on]
        version = self.store.served()
        weights, folder = self.store.path(version), self._new_run()
        before = measure(self.bundle, weights, measured, device)
        trained = fine_tune(self.bundle, weights, [items[name] for name in train], measured, chosen, folder, device)
        after = measure(self.bundle, trained, measured, device) if trained else before
        where = "held out" if held_out else "trained on, too few to hold some out"
        verdict = (
            f"mean Dice {before['mean_dice']:.4f} before, {after['mean_dice']:.4f} after, on {len(measured)} labelled "
            f"image(s) {where}"
        )
        result = {
            **{"started_from": version, "trained_on": train, "measured_on": measured_on, "left_out": left_out},
            **{"is_held_out": bool(held_out), "before": before, "after": after, "verdict": verdict},
            **{"request": chosen.model_dump(), "run": folder.name},
        }
        is_better = trained is not None and after["mean_dice"] > before["mean_dice"]
        if trained is not None:
            version = self.store.publish(trained, result) if is_better else version
            trained.unlink()  # the store has it, or nobody wants it
        kept = f"served from now on: version {version}" if is_better else f"not better: version {version} stays"
        _logger.info("%s; %s", verdict, kept)
        return {**result, "published": is_better, "served_version": version, "verdict": f"{verdict}; {kept}"}

    def _labelled(self, datastore: Datastore, files: ExitStack) -> tuple[dict[str, Item], dict[str, str]]:
        """Images with readable final labels by name, as files that train.yaml reads, and why others are left out."""
        listed = datastore.datalist()
        items, left_out = {}, dict(getattr(datastore, "left_out", {}))
        for item in listed:
            name = Path(item["image"]).name
            try:
                read_label(item["label"], f"label of {name}", image_size(item["image"], name), self.bundle.classes)
            except UserError as error:
                _logger.warning("left out of the training: %s", error)
                left_out[name] = str(error)
                continue
            paths = {key: str(files.enter_context(readable_file(item[key]))) for key in ("image", "label")}
            items[name] = {**paths, "mask_values": "labels"}
        return items, left_out

    def _new_run(self) -> Path:
        """A folder for this run; what killed ones left of weights goes."""
        runs = self.store.folder / "runs"
        for leftover in runs.glob("*/*.pt"):
            leftover.unlink(missing_ok=True)
        return runs / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S_%f")


def hold_out(names: Sequence[str], share: float, seed: int, folder: Path) -> tuple[list[str], list[str]]:
    """Split images into those to train on and held-out ones, as earlier trainings did; held_out.json remembers it.

    An image that was trained on is never held out later, nor the other way round: versions of the weights would not
    be comparable. New images are taken in the order of a seeded hash, until the share, in [0, 1), is held out.

    Returns:
        Names to train on and names held out, both sorted; nothing is held out of fewer than three, else at least one.
    """
    path = folder / "held_out.json"
    known: dict[str, bool] = read_json(path) if path.exists() else {}
    new = [name for name in names if name not in known]
    new.sort(key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    wanted = max(1, round(share * len(names))) if len(names) >= FEWEST_TO_HOLD_OUT else 0
    missing = wanted - sum(known.get(name, False) for name in names)
    if len(new) == len(names):
        missing = min(missing, len(names) - 1)
    known.update({name: place < missing for place, name in enumerate(new)})
    write_json(path, dict(sorted(known.items())))
    return sorted(name for name in names if not known[name]), sorted(name for name in names if known[name])


def fine_tune(
    bundle: Bundle,
    weights: Path,
    train: Sequence[Item],
    validate: Sequence[Item],
    chosen: TrainingParameters,
    folder: Path,
    device: torch.device,
) -> Path | None:
    """Train on from these weights, final convolution included, into a folder that is not there yet.

    Returns:
        The weights file of the round that is best on `validate`, or None if no round counted as one.
    """
    steps = chosen.max_epochs * chosen.epoch_length
    settings: dict[str, Any] = {
        **chosen.model_dump(include={"max_epochs", "epoch_length", "learning_rate", "seed"}),
        **{"bundle_root": str(bundle.folder), "output_dir": str(folder), "device": device},
        **{"init_weights": str(weights), "class_table": described(bundle.shipped_weights, "class_table")},
        "val_interval": 1,
        **{"train#dataset#data": list(train), "validate#dataset#data": list(validate)},
        "train#trainer#checkpoint_every_steps": steps + 1,  # nobody resumes it
        "batch_size": min(chosen.batch_size, len(train)),
        "warmup_steps": min(10, steps // 2),
        "ema_decay": 0.9,  # a short training: 0.99 would still be half the weights that it started from
    }
    files = {"config_file": str(bundle.folder / TRAINING), "meta_file": str(bundle.folder / METADATA)}
    workflow = ConfigWorkflow(**files, logging_file=False, workflow_type="train", run_id="training", **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    (folder / "checkpoint_last.pt").unlink(missing_ok=True)
    written = folder / "model.pt"
    return written if written.is_file() else None


def measure(bundle: Bundle, weights: Path, items: Sequence[Item], device: torch.device) -> dict[str, Any]:
    """Dice of these weights on labelled images, at their own size, by the pipeline that serves them.

    Returns:
        "dice" over all pixels of all images for each class that the labels have, the background among them, and
        "mean_dice" over these; "images". A few pixels of a class that the labels lack would otherwise be worth as much
        as all of another class; so they count as background that was missed.
    """
    segmenter, number = bundle.segmenter(weights, device), bundle.classes.num_labels
    confusion: Any = np.zeros((number, number), np.int64)
    for item in items:
        mask = segmenter.segment(item["image"]).mask.numpy().astype(np.int64)
        confusion += score_mask(mask, read_mask(item["label"]), number, with_hd95=False).confusion
    in_labels, in_masks = confusion.sum(1), confusion.sum(0)
    dice = {
        name: float(2 * confusion[label, label] / (in_labels[label] + in_masks[label]))
        for label, name in enumerate(bundle.classes.names)
        if in_labels[label]
    }
    return {"mean_dice": sum(dice.values()) / len(dice), "dice": dice, "images": len(items)}
