"""Which image to label next: the one that the model is least sure of."""

from __future__ import annotations

import hashlib
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from .http_errors import as_http_errors
from .scoring import EpistemicScoring, known_score

SCORED_AT_ONCE = 8  # images, where nothing was scored by the weights that are served: seconds on a CPU


class Epistemic(Strategy):
    """The image without a label whose predictive entropy is highest.

    Scores are those of the weights that are served. Where there are none yet, it scores a few images itself, other ones
    after each training; `POST /scoring/epistemic` scores all.

    Args:
        scoring: that notes the entropies.
    """

    def __init__(self, scoring: EpistemicScoring) -> None:
        super().__init__("The image that the model is least sure of, by predictive entropy")
        self.scoring = scoring

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose; None when every image has a label or none can be read."""
        with as_http_errors():
            if hasattr(datastore, "reload"):
                datastore.reload()  # scores come from another process
            images = datastore.get_unlabeled_images()
            scores = self._scores(images, datastore)
            if not scores and images:
                version = self.scoring.model.store.served()
                ordered = sorted(images, key=lambda image: hashlib.sha256(f"{version}/{image}".encode()).digest())
                for first in range(0, len(ordered), SCORED_AT_ONCE):
                    scores = self.scoring.score(ordered[first : first + SCORED_AT_ONCE], request, datastore)["scores"]
                    if scores:
                        break
        if not scores:
            return None
        best = min(scores, key=lambda image: (-scores[image], image))
        return {"id": best, "weight": scores[best]}

    def _scores(self, images: list[str], datastore: Datastore) -> dict[str, float]:
        version = self.scoring.model.store.served()
        known = ((image, known_score(datastore, image, version)) for image in images)
        return {image: score for image, score in known if score is not None}
