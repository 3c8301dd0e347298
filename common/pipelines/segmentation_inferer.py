"""How a segmenter is run over an image: whole or in windows, and optionally over its mirror image, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from torch import Tensor

from ..io.segmentation_classes import ClassTable

WINDOWS_AT_A_TIME = 4


class FlipInferer(Inferer):
    """Mean of the class probabilities of an image and of its mirror image, left to right.

    Classes that name a side change places in the mirror, see `ClassTable.mirrored_labels`.

    Args:
        inferer: runs the network, on either image.
        classes: the labels.
    """

    def __init__(self, inferer: Inferer, classes: ClassTable) -> None:
        super().__init__()
        self.inferer = inferer
        self.mirrored_labels = classes.mirrored_labels()

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Infer.

        Args:
            inputs: images [B, 1, H, W].
            network: gives logits [B, K, H, W].
            args: handed on to the network.
            kwargs: likewise.

        Returns:
            Logarithms of the mean probabilities, float32 [B, K, H, W]: their softmax is the mean itself, so that what
            follows a network's logits can follow this.

        Raises:
            ValueError: the network gives another number of channels than the table has labels.
        """
        straight = self._log_probabilities(self.inferer(inputs, network, *args, **kwargs))
        mirrored = self._log_probabilities(self.inferer(inputs.flip(-1), network, *args, **kwargs))
        return torch.logaddexp(straight, mirrored[:, self.mirrored_labels].flip(-1)) - math.log(2)

    def _log_probabilities(self, logits: Any) -> Tensor:
        if logits.shape[1] != len(self.mirrored_labels):
            raise ValueError(
                f"FlipInferer: found logits {tuple(logits.shape)}; expected [B, {len(self.mirrored_labels)}, H, W], a "
                "channel for each label. Give it the class table that the network was trained with."
            )
        return logits.as_subclass(torch.Tensor).float().log_softmax(dim=1)


def segmentation_inferer(
    sliding_window: bool, window_size: Sequence[int], overlap: float, flips: bool, classes: ClassTable
) -> Inferer:
    """Choose how the segmenter is run.

    Args:
        sliding_window: over windows that are blended with Gaussian weights; for images larger than those that the
            network was trained on, such as whole panoramics. Otherwise over the whole image at once.
        window_size: px, (rows, columns).
        overlap: share of a window that the next one covers again, in [0, 1).
        flips: average with the mirror image, for twice the time.
        classes: the labels.

    Raises:
        ValueError: no window size of two numbers, or no such overlap.
    """
    inferer: Inferer = SimpleInferer()
    if sliding_window:
        if len(window_size) != 2 or min(window_size) < 1 or not 0 <= overlap < 1:
            raise ValueError(
                f"sliding window: found window_size {list(window_size)}, overlap {overlap}; expected rows and columns "
                "in px, and a share of at least 0 and below 1."
            )
        inferer = SlidingWindowInferer(list(window_size), WINDOWS_AT_A_TIME, overlap, mode="gaussian")
    return FlipInferer(inferer, classes) if flips else inferer
