"""MONAI Label's training: from the datastore's final labels to weights that are served only if they are better."""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import name_to_device

from ..errors import UserError
from .bundle import Bundle
from .checked_datastore import CheckedDatastore
from .fine_tuning import FineTuningRequest, as_json, fine_tune, measure
from .http_errors import as_http_errors
from .label_checks import RefusedUploadError, check_image, check_label
from .readable import readable_file
from .split import hold_out
from .weights_store import WeightsStore

USE_VERSION = "use_version"  # in a request: serve this version again instead of training
STATS = ("parent", "started_from", "is_held_out", "before", "after", "verdict", "request")

_logger = logging.getLogger(__name__)


class NothingToTrainOnError(UserError, ValueError):
    """There is no label that can be read."""


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
        return as_json(FineTuningRequest())

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
            HTTPException: 400 for a request or labels that cannot be used; nothing has changed.
        """
        with as_http_errors():
            if USE_VERSION in request:
                return self._use_version(request[USE_VERSION])
            return self._train(FineTuningRequest.of(request), request.get("device"), datastore)

    def _use_version(self, version: Any) -> dict[str, Any]:
        self.store.serve(version)
        _logger.info("serving version %d of the weights", version)
        return {"published": False, "served_version": version}

    def _train(self, request: FineTuningRequest, device_name: str | None, datastore: Datastore) -> dict[str, Any]:
        with ExitStack() as files:
            names, left_out = self._labelled(datastore, files)
            return self._train_on(names, left_out, request, torch.device(name_to_device(device_name)))

    def _train_on(
        self,
        names: dict[str, dict[str, str]],
        left_out: dict[str, str],
        request: FineTuningRequest,
        device: torch.device,
    ) -> dict[str, Any]:
        train, held_out = hold_out(list(names), request.val_split, request.seed, self.store.folder)
        if not train or not names:
            raise NothingToTrainOnError(
                f"training: found {len(names)} images with a final label to train on, {len(left_out)} that cannot be "
                "read; expected one or more. Submit labels first."
            )
        measured = [names[name] for name in held_out or train]
        version = self.store.served()
        before = measure(self.bundle, self.store.path(version), measured, device)
        folder = self._new_run()
        trained = fine_tune(
            self.bundle, self.store.path(version), [names[name] for name in train], measured, request, folder, device
        )
        after = measure(self.bundle, trained, measured, device) if trained else before
        result: dict[str, Any] = {
            "started_from": version,
            "trained_on": train,
            "measured_on": held_out or train,
            "is_held_out": bool(held_out),
            "left_out": left_out,
            "before": before,
            "after": after,
            "request": as_json(request),
            "run": folder.name,
        }
        return self._publish(trained, result)

    def _publish(self, trained: Path | None, result: dict[str, Any]) -> dict[str, Any]:
        before, after = result["before"]["mean_dice"], result["after"]["mean_dice"]
        is_better = trained is not None and after > before
        served = self.store.publish(trained, result) if trained is not None and is_better else result["started_from"]
        if trained is not None:
            trained.unlink(missing_ok=True)  # the store has it, or nobody wants it
        count = len(result["measured_on"])
        where = "held out" if result["is_held_out"] else "trained on, too few to hold some out"
        verdict = f"mean Dice {before:.4f} before, {after:.4f} after, on {count} labelled image(s) {where}"
        kept = f"served from now on: version {served}" if is_better else f"not better: version {served} stays"
        _logger.info("%s; %s", verdict, kept)
        return {"published": is_better, "served_version": served, "verdict": f"{verdict}; {kept}", **result}

    def _labelled(self, datastore: Datastore, files: ExitStack) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Images with readable final labels by name, as files that train.yaml reads, and why others are left out."""
        listed = datastore.datalist()
        items, left_out = {}, dict(datastore.left_out) if isinstance(datastore, CheckedDatastore) else {}
        for item in listed:
            name = Path(item["image"]).name
            try:
                size = check_image(item["image"], name).pixels.shape[-2:]
                check_label(item["label"], f"label of {name}", (size[0], size[1]), self.bundle.classes)
            except RefusedUploadError as error:
                _logger.warning("left out of the training: %s", error)
                left_out[name] = str(error)
                continue
            paths = (files.enter_context(readable_file(item[key])) for key in ("image", "label"))
            items[name] = dict(zip(("image", "label"), map(str, paths), strict=True))
        return items, left_out

    def _new_run(self) -> Path:
        """A folder for this run; what killed ones left of weights goes."""
        runs = self.store.folder / "runs"
        for leftover in runs.glob("*/*.pt"):
            leftover.unlink(missing_ok=True)
        folder = runs / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S_%f")
        shutil.rmtree(folder, ignore_errors=True)
        return folder
