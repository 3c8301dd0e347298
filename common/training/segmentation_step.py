"""Fine-tuning of the segmenter on labelled radiographs, as MONAI's `iteration_update`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from ..data.augmentation import augmented_pair
from ..errors import DatasetError
from .optimizer_step import TrainingStep


@dataclass(kw_only=True, eq=False)
class SegmentationStep(TrainingStep):
    """One optimiser step of all weights, on Dice and cross-entropy in float32.

    Args:
        loss_function: (logits [B, K, H, W], label [B, 1, H, W]) to a scalar, such as MONAI's DiceCELoss with
            `to_onehot_y` and `softmax`. The others as of `TrainingStep`.
    """

    loss_function: nn.Module

    def terms(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss.

        `batch` holds "image" [B, 1, H, W] in [0, 1], "label" [B, 1, H, W], classes 0 ... K-1, and "draw" [B].

        Raises:
            DatasetError: a value of the labels is no class, which the loss would meet with an index out of range.
        """
        device, num_classes = engine.state.device, self.ema.network.num_classes
        low, high = float(batch["label"].min()), float(batch["label"].max())
        if low < 0 or high >= num_classes:
            raise DatasetError(
                f"label: expected values 0 to {num_classes - 1}, found {low:g} to {high:g}; choose the class table "
                "that the masks were drawn with, or group its classes"
            )
        image, label = batch["image"].to(device), batch["label"].to(device)
        image, label = augmented_pair(self.augmentation, image, label, self.seed, batch["draw"].tolist())
        with self.forward_pass(engine):
            logits = engine.network(image)
        return {"loss": self.loss_function(logits.float(), label)}


def logits_and_labels(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What ignite's ConfusionMatrix takes: logits [B, K, H, W] and labels [B, H, W] of an evaluator's output."""
    return output["pred"].as_subclass(torch.Tensor).float(), output["label"].as_subclass(torch.Tensor)[:, 0].long()
