"""Which image to label next: the one that the model is least sure of.

How unsure it is of an image: the entropy of its class probabilities, averaged over several ways to see the image.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from pydantic import Field
from torch import Tensor, nn

from ..errors import UserError
from ..io.segmentation_classes import ClassTable
from ..seeding import Purpose, seeded_dropout
from .bundle import Pipeline
from .client_files import readable_file
from .client_requests import Strict, parsed
from .http_service import ServiceError
from .infer_task import ServedModel

INFO_KEY = "epistemic"  # in an image's info: {"entropy", "weights_version", "method", "samples"}
SCORED_AT_ONCE = 8  # images, where nothing was scored by the weights that are served: seconds on a CPU

_logger = logging.getLogger(__name__)


class ScoringParameters(Strict):
    """What a client may choose for a scoring."""

    uncertainty: Literal["dropout", "flips"] = "dropout"  # how the image is seen in several ways
    samples: Annotated[int, Field(ge=1)] = 8  # with units dropped
    seed: Annotated[int, Field(ge=0)] = 0  # of what is dropped
    max_images: Annotated[int, Field(ge=1)] | None = None  # to score; None for all
    all: bool = False  # score again what these weights have scored


def predictive_entropy(probabilities: Tensor) -> float:
    """Entropy of the mean of probabilities [S, K, H, W], which sum to one over K, averaged over the pixels.

    In nats, from 0 (sure) to ln K.
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


def score_image(pipeline: Pipeline, path: str | Path, classes: ClassTable, chosen: ScoringParameters) -> float:
    """Predictive entropy of one image, in nats; a function of weights, image file and seed.

    Raises:
        UnreadableRadiographError: there is no radiograph in the file.
    """
    with readable_file(path) as file:
        own_seed = int.from_bytes(hashlib.sha256(file.read_bytes()).digest()[:4], "big") ^ chosen.seed

        def run(image: Tensor, network: nn.Module) -> Tensor:
            if chosen.uncertainty == "flips":
                return sample_with_flips(image, network, classes)
            return sample_with_dropout(image, network, chosen.samples, own_seed)

        return predictive_entropy(pipeline.sample_probabilities(file, run))


class EpistemicScoring(ScoringMethod):
    """Notes the predictive entropy of images that have no final label yet, in each image's info."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__("Predictive entropy over Monte-Carlo dropout or flips, of the images without a label")
        self.model = model

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score, on "device"; see `ScoringParameters` for the rest.

        Returns:
            "scores" by image id, "skipped" images with the reason, "weights_version".

        Raises:
            SettingsError: a value that cannot be used.
        """
        chosen = parsed(ScoringParameters, request)
        images = sorted(datastore.get_unlabeled_images())
        known = {} if chosen.all else self.known_scores(images, datastore)
        return self.score([image for image in images if image not in known][: chosen.max_images], request, datastore)

    def score(self, images: Sequence[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score these images and note it; parameters and result as of a call."""
        chosen = parsed(ScoringParameters, request)
        pipeline, version = self.model.pipeline(request.get("device"))
        scores, skipped = {}, {}
        for image in images:
            try:
                uri = datastore.get_image_uri(image)
                entropy = score_image(pipeline, uri, self.model.bundle.classes, chosen)
            except ServiceError:  # not the image's fault
                raise
            except UserError as error:
                _logger.warning("not scored: %s", error)
                skipped[image] = str(error)
                continue
            scores[image] = entropy
            how = {"method": chosen.uncertainty, "samples": chosen.samples}
            datastore.update_image_info(image, {INFO_KEY: {"entropy": entropy, "weights_version": version, **how}})
        return {"scores": scores, "skipped": skipped, "weights_version": version}

    def known_scores(self, images: Sequence[str], datastore: Datastore) -> dict[str, float]:
        """Entropies that the weights that are served had on images before: those of others say nothing."""
        version = self.model.store.served()
        notes = {image: datastore.get_image_info(image).get(INFO_KEY, {}) for image in images}
        return {image: float(n["entropy"]) for image, n in notes.items() if n.get("weights_version") == version}


class Epistemic(Strategy):
    """The image without a label whose predictive entropy is highest.

    Scores are those of the weights that are served. Where there are none yet, it scores a few images itself, other ones
    after each training; `POST /scoring/epistemic` scores all.
    """

    def __init__(self, scoring: EpistemicScoring) -> None:
        super().__init__("The image that the model is least sure of, by predictive entropy")
        self.scoring = scoring

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose; None when every image has a label or none can be read."""
        if hasattr(datastore, "reload"):
            datastore.reload()  # scores come from another process
        images = datastore.get_unlabeled_images()
        scores = self.scoring.known_scores(images, datastore)
        version = self.scoring.model.store.served()
        ordered = sorted(images, key=lambda image: hashlib.sha256(f"{version}/{image}".encode()).digest())
        while ordered and not scores:
            some, ordered = ordered[:SCORED_AT_ONCE], ordered[SCORED_AT_ONCE:]
            scores = self.scoring.score(some, request, datastore)["scores"]
        if not scores:
            return None
        best = min(scores, key=lambda image: (-scores[image], image))
        return {"id": best, "weight": scores[best]}


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
