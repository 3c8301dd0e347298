"""Which image to label next: the one that the model is least sure of.

How unsure it is of an image: the entropy of its class probabilities, averaged over several ways to see the image.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from monai.networks.utils import train_mode
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from pydantic import Field
from torch import Tensor, nn

from ..data.mask_transforms import PadGeometry
from ..errors import SettingsError, UserError, WeightsError
from ..io import read_radiograph
from ..io.segmentation_classes import ClassTable
from ..pipelines import DentalSegmenter
from ..seeding import Purpose, seeded_dropout
from .bundle import ServedModel
from .client_files import readable_file
from .client_requests import Strict, parsed
from .services import ServiceError

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
    layers = [module for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    with train_mode(*layers), torch.no_grad(), seeded_dropout(image.device, seed, Purpose.DROPOUT):
        return torch.cat([network(image) for _ in range(samples)])


@torch.no_grad()
def sample_with_flips(image: Tensor, network: nn.Module, classes: ClassTable) -> Tensor:
    """Logits [2, K, H, W] of an image [1, 1, H, W] as it is and mirrored, both upright."""
    mirrored = network(image.flip(-1))[:, classes.mirrored_labels()].flip(-1)
    return torch.cat([network(image), mirrored])


def sample_probabilities(segmenter: DentalSegmenter, path: Path, chosen: ScoringParameters) -> Tensor:
    """Class probabilities of an image seen in several ways, at the network's size without padding: [S, K, h, w].

    Raises:
        UnreadableRadiographError: there is no radiograph in the file.
    """
    item = segmenter.preprocessing({"image": read_radiograph(path)})
    image = item["image"][None].to(segmenter.device)
    if chosen.uncertainty == "flips":
        logits = sample_with_flips(image, segmenter.network, segmenter.classes)
    else:
        own_seed = int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:4], "big") ^ chosen.seed
        logits = sample_with_dropout(image, segmenter.network, chosen.samples, own_seed)
    geometry = PadGeometry.of(item["geometry"])
    rows = slice(geometry.top, geometry.top + geometry.resized_height)
    columns = slice(geometry.left, geometry.left + geometry.resized_width)
    return logits.float().softmax(dim=1)[:, :, rows, columns].cpu()


class EpistemicScoring(ScoringMethod):
    """Notes the predictive entropy of images that have no final label yet, in each image's info."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__("Predictive entropy over Monte-Carlo dropout or flips, of the images without a label")
        self.model = model

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score, on "device", what these weights have not scored; see `ScoringParameters` for the rest.

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
        """Score these images and note it, by weights, file and seed alone; parameters and result as above."""
        chosen, device = parsed(ScoringParameters, request), request.get("device")
        how = {"method": chosen.uncertainty, "samples": chosen.samples}
        scores, skipped = {}, {}
        for image in images:
            try:
                with (
                    readable_file(datastore.get_image_uri(image)) as file,
                    self.model.segmenter(device) as (pipe, version),
                ):
                    scores[image] = predictive_entropy(sample_probabilities(pipe, file, chosen))
            except (ServiceError, SettingsError, WeightsError):  # not the image's fault
                raise
            except UserError as error:
                _logger.warning("not scored: %s", error)
                skipped[image] = str(error)
            else:
                note = {"entropy": scores[image], "weights_version": version, **how}
                datastore.update_image_info(image, {INFO_KEY: note})
        return {"scores": scores, "skipped": skipped, "weights_version": self.model.store.served()}

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
