"""MONAI Label's training: from the datastore's final labels to weights that are served only if they are better."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import name_to_device

from ..errors import DatasetError, UserError
from .bundle import Bundle
from .client_files import image_size, read_label, readable_file
from .fine_tuning import Item, TrainingParameters, fine_tune, hold_out, measure
from .request_checks import Strict, parsed
from .weights_store import WeightsStore

STATS = ("parent", "started_from", "is_held_out", "before", "after", "verdict", "request")

_logger = logging.getLogger(__name__)


class Version(Strict):
    """A version of the weights to serve again instead of training."""

    use_version: int | None = None


class RadiographTrainTask(TrainTask):
    """Fine-tunes what is served now on the final labels; keeps the result only if it beats it on held-out ones.

    Args:
        bundle: whose train.yaml runs.
        store: of the weights.
    """

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
        version = parsed(Version, request).use_version
        if version is not None:
            self.store.serve(version)
            _logger.info("serving version %d of the weights", version)
            return {"published": False, "served_version": version}
        chosen, device = parsed(TrainingParameters, request), torch.device(name_to_device(request.get("device")))
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
        measured = [items[name] for name in held_out or train]
        version = self.store.served()
        weights = self.store.path(version)
        before = measure(self.bundle, weights, measured, device)
        folder = self._new_run()
        to_train_on = [items[name] for name in train]
        trained = fine_tune(self.bundle, weights, to_train_on, measured, chosen, folder, device)
        after = measure(self.bundle, trained, measured, device) if trained else before
        result: dict[str, Any] = {
            "started_from": version,
            "trained_on": train,
            "measured_on": held_out or train,
            "is_held_out": bool(held_out),
            "left_out": left_out,
            "before": before,
            "after": after,
            "request": chosen.model_dump(),
            "run": folder.name,
        }
        return self._publish(trained, result)

    def _publish(self, trained: Path | None, result: dict[str, Any]) -> dict[str, Any]:
        before, after = result["before"]["mean_dice"], result["after"]["mean_dice"]
        where = "held out" if result["is_held_out"] else "trained on, too few to hold some out"
        count, served = len(result["measured_on"]), result["started_from"]
        result["verdict"] = f"mean Dice {before:.4f} before, {after:.4f} after, on {count} labelled image(s) {where}"
        is_better = trained is not None and after > before
        if trained is not None:
            served = self.store.publish(trained, result) if is_better else served
            trained.unlink()  # the store has it, or nobody wants it
        kept = f"served from now on: version {served}" if is_better else f"not better: version {served} stays"
        _logger.info("%s; %s", result["verdict"], kept)
        return {**result, "published": is_better, "served_version": served, "verdict": f"{result['verdict']}; {kept}"}

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
            items[name] = {key: str(files.enter_context(readable_file(item[key]))) for key in ("image", "label")}
        return items, left_out

    def _new_run(self) -> Path:
        """A folder for this run; what killed ones left of weights goes."""
        runs = self.store.folder / "runs"
        for leftover in runs.glob("*/*.pt"):
            leftover.unlink(missing_ok=True)
        return runs / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S_%f")
