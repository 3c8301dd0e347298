"""Batch dict to what MONAI's engines hand to network and metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def image_as_label(
    batchdata: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """An autoencoder's target is its input: (image, image), each [B, 1, H, W] on `device`."""
    image = batchdata["image"].to(device=device, non_blocking=non_blocking, **kwargs)
    return image, image


def logits_and_labels(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What ignite's ConfusionMatrix takes: logits [B, K, H, W] and labels [B, H, W] of an evaluator's output."""
    return output["pred"].as_subclass(torch.Tensor).float(), output["label"].as_subclass(torch.Tensor)[:, 0].long()
