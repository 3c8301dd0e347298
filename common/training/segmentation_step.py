"""Fine-tuning of the segmenter on labelled radiographs, as MONAI's `iteration_update`."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from ..amp import autocast
from ..data.augmentation import Augmentation, augmented_pair
from ..distributed import rank
from ..errors import DatasetError
from ..networks.diffusion_segmenter import DiffusionSegmenter
from ..seeding import Purpose, seeded_dropout
from .ema import ExponentialMovingAverage
from .optimizer_step import step_and_average


class SegmentationStep:
    """One optimiser step of all weights, on Dice and cross-entropy.

    Args:
        loss_function: (logits [B, K, H, W], label [B, 1, H, W]) to a scalar, such as MONAI's DiceCELoss with
            `to_onehot_y` and `softmax`.
        ema: updated after each step.
        max_grad_norm: gradients are clipped to this norm.
        amp: bfloat16 autocast where the hardware has it; the loss stays float32.
        seed: of augmentation and dropout.
        augmentation: of images and masks, by draw; None for none.
    """

    def __init__(
        self,
        loss_function: nn.Module,
        ema: ExponentialMovingAverage[DiffusionSegmenter],
        max_grad_norm: float = 1.0,
        amp: bool = True,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.loss_function = loss_function
        self.ema = ema
        self.max_grad_norm = max_grad_norm
        self.amp = amp
        self.seed = seed
        self.augmentation = augmentation

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, float]:
        """Do one step; return loss, learning rate and gradient norm.

        `batch` holds "image" [B, 1, H, W] in [0, 1], "label" [B, 1, H, W], classes 0 ... K-1, and "draw" [B].

        Raises:
            DatasetError: a value of the labels is no class.
            NonFiniteLossError: names the step.
        """
        device = engine.state.device
        check_label_values(batch["label"], self.ema.network.num_classes)
        image, label = batch["image"].to(device), batch["label"].to(device)
        image, label = augmented_pair(self.augmentation, image, label, self.seed, batch["draw"].tolist())
        engine.network.train()
        dropout = seeded_dropout(device, self.seed, Purpose.DROPOUT, engine.state.iteration, rank())
        with dropout, autocast(device, self.amp):
            logits = engine.network(image)
        loss = self.loss_function(logits.float(), label)
        return step_and_average(engine, {"loss": loss}, self.ema, self.max_grad_norm)


def check_label_values(label: Tensor, num_classes: int) -> None:
    """Refuse masks with values that are no class, which the loss would meet with an index out of range.

    Raises:
        DatasetError: names the values.
    """
    low, high = float(label.min()), float(label.max())
    if low < 0 or high >= num_classes:
        raise DatasetError(
            f"label: expected values 0 to {num_classes - 1}, found {low:g} to {high:g}; choose the class table that "
            "the masks were drawn with, or group its classes"
        )


def logits_and_labels(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What ignite's ConfusionMatrix takes: logits [B, K, H, W] and labels [B, H, W] of an evaluator's output."""
    return output["pred"].as_subclass(torch.Tensor).float(), output["label"].as_subclass(torch.Tensor)[:, 0].long()
