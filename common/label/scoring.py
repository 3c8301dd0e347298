"""How unsure the model is of each image: entropy of its class probabilities, averaged over ways to see the image."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.utils.others.generic import name_to_device
from torch import Tensor, nn

from ..errors import UserError
from ..io.segmentation_classes import ClassTable
from ..seeding import Purpose, seeded_dropout
from .bundle import Pipeline, RequestError
from .http_errors import BAD_REQUEST, as_http_errors
from .infer_task import ServedModel
from .readable import readable_file

INFO_KEY = "epistemic"  # in an image's info: {"entropy", "weights_version", "method"}
DROPOUT, FLIPS = "dropout", "flips"
SAMPLES = 8

_logger = logging.getLogger(__name__)


def predictive_entropy(probabilities: Tensor) -> float:
    """Entropy of the mean probabilities, averaged over the pixels.

    Args:
        probabilities: [S, K, H, W] of S samples, summing to one over K.

    Returns:
        Nats, from 0 (sure) to ln K.
    """
    mean = probabilities.double().mean(dim=0)
    return float(torch.special.entr(mean).sum(dim=0).mean())


def sample_with_dropout(image: Tensor, network: nn.Module, samples: int, seed: int) -> Tensor:
    """Logits [S, K, H, W] of an image [1, 1, H, W] with other units dropped each time; the same for the same seed."""
    with _dropout_on(network), seeded_dropout(image.device, seed, Purpose.DROPOUT):
        return torch.cat([network(image) for _ in range(samples)])


def sample_with_flips(image: Tensor, network: nn.Module, classes: ClassTable) -> Tensor:
    """Logits [2, K, H, W] of an image [1, 1, H, W] as it is and mirrored, both upright."""
    mirrored = network(image.flip(-1))[:, classes.mirrored_labels()].flip(-1)
    return torch.cat([network(image), mirrored])


def score_image(
    pipeline: Pipeline,
    path: str | Path,
    classes: ClassTable,
    method: str = DROPOUT,
    samples: int = SAMPLES,
    seed: int = 0,
) -> float:
    """Predictive entropy of one image, in nats; a function of weights, image file and seed.

    Raises:
        UnreadableRadiographError: there is no radiograph in the file.
    """
    with readable_file(path) as file:
        own_seed = int.from_bytes(hashlib.sha256(file.read_bytes()).digest()[:4], "big") ^ seed

        def run(image: Tensor, network: nn.Module) -> Tensor:
            if method == FLIPS:
                return sample_with_flips(image, network, classes)
            return sample_with_dropout(image, network, samples, own_seed)

        return predictive_entropy(pipeline.sample_probabilities(file, run))


class EpistemicScoring(ScoringMethod):
    """Notes the predictive entropy of images that have no final label yet, in each image's info.

    Args:
        model: what is unsure.
    """

    def __init__(self, model: ServedModel) -> None:
        super().__init__("Predictive entropy over Monte-Carlo dropout or flips, of the images without a label")
        self.model = model

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score.

        Takes "samples" (of dropout), "uncertainty" ("dropout" or "flips"), "seed", "max_images" and "device"; "all"
        true scores again what these weights have scored.

        Returns:
            "scores" by image id, "skipped" images with the reason, "weights_version".

        Raises:
            HTTPException: 400 for a value that cannot be used.
        """
        with as_http_errors():
            images = sorted(datastore.get_unlabeled_images())
            if not request.get("all"):
                images = [image for image in images if known_score(datastore, image, self.model.store.served()) is None]
            limit = request.get("max_images")
            return self.score(
                images[: _whole("max_images", limit)] if limit is not None else images, request, datastore
            )

    def score(self, images: Sequence[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score these images and note it; arguments and result as of a call."""
        method = request.get("uncertainty", DROPOUT)
        if method not in (DROPOUT, FLIPS):
            raise RequestError(f"uncertainty: found {method!r}; expected {DROPOUT} or {FLIPS}.")
        samples, seed = _whole("samples", request.get("samples", SAMPLES)), _whole("seed", request.get("seed", 0), 0)
        pipeline, version = self.model.pipeline(name_to_device(request.get("device")))
        scores, skipped = {}, {}
        for image in images:
            try:
                uri = datastore.get_image_uri(image)
                entropy = score_image(pipeline, uri, self.model.bundle.classes, method, samples, seed)
            except (UserError, HTTPException) as error:
                reason = str(error)
                if isinstance(error, HTTPException):
                    if error.status_code != BAD_REQUEST:  # not the image's fault
                        raise
                    reason = error.detail
                _logger.warning("not scored: %s", reason)
                skipped[image] = reason
                continue
            scores[image] = entropy
            note = {"entropy": entropy, "weights_version": version, "method": method, "samples": samples}
            datastore.update_image_info(image, {INFO_KEY: note})
        return {"scores": scores, "skipped": skipped, "weights_version": version}


def known_score(datastore: Datastore, image: str, version: int) -> float | None:
    """The entropy that these weights had on an image, or None: that of others says nothing."""
    note = datastore.get_image_info(image).get(INFO_KEY, {})
    return float(note["entropy"]) if note.get("weights_version") == version else None


@contextmanager
def _dropout_on(network: nn.Module) -> Iterator[None]:
    """Let dropout drop within the block; everything else stays as in inference."""
    layers = [module for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer, was_training in zip(layers, before, strict=True):
            layer.train(was_training)


def _whole(name: str, value: Any, smallest: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise RequestError(f"{name}: found {value!r}; expected a whole number of at least {smallest}.")
    return value
