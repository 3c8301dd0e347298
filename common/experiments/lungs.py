"""A radiograph to the mask of its lungs at its own size, with hyperparameters that were fixed before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .attention_segmenter import DIFFSEG, Networks, at_size, evidence, look
from .lung_choice import choose_lungs
from .lung_tuning import Tuned


class ZeroShotLungs:
    """Lungs by DiffSeg and the choice without ground truth.

    Args:
        networks: of the bundle.
        tuned: hyperparameters.
    """

    def __init__(self, networks: Networks, tuned: Tuned) -> None:
        self.networks = networks
        self.tuned = tuned

    def __call__(self, pixels: Tensor) -> NDArray[np.bool_]:
        """Radiograph [1, H, W] in [0, 1] to lungs [H, W]."""
        settings = self.tuned.segments[DIFFSEG]
        seen = look(self.networks, pixels, (settings.timestep,), settings.num_noises, settings.seed)
        found, _ = evidence(seen, DIFFSEG, settings, self.tuned.prior)
        return at_size(choose_lungs(found, self.tuned.choice[DIFFSEG]), (pixels.shape[1], pixels.shape[2]))
