"""Measure the latent statistics of a trained codec and store them with its weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..distributed import is_rank_zero, share, wait_for_all, world_size
from ..networks.latent_codec import LatentCodec
from ..networks.weights import load_weights, other_parts, save_weights
from ..progress import ProgressBar

_logger = logging.getLogger(__name__)


@torch.inference_mode()
def measure_statistics(codec: LatentCodec, loader: DataLoader, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Mean and standard deviation [C] of the raw latents as sampled, over all images and positions, and their count.

    The variance is that of the mixture of all posteriors: Var(mean) + E(std²). Sums are float64; under
    torch.distributed each process gives its share of the images and all get the same result.
    """
    sums = torch.zeros(3, codec.latent_channels, dtype=torch.float64, device=device)  # elements, sum, sum of squares
    images = torch.zeros((), dtype=torch.int64, device=device)
    for batch in ProgressBar(loader, desc="latent statistics", unit="batch"):
        mean, std = (part.double() for part in codec.posterior(batch["image"].to(device)))
        sums[0] += mean.numel() / codec.latent_channels
        sums[1] += mean.sum((0, 2, 3))
        sums[2] += (mean.square() + std.square()).sum((0, 2, 3))
        images += len(mean)
    if world_size() > 1:
        dist.all_reduce(sums)
        dist.all_reduce(images)
    average = sums[1] / sums[0]
    variance = sums[2] / sums[0] - average.square()
    return average.float(), variance.sqrt().float(), int(images)


@dataclass
class LatentStatistics:
    """The last act of a training: measure over the training split, write into the weights file.

    Args:
        codec: of the architecture of the file; its weights are replaced by the file's.
        weights_path: the best weights of the training; rewritten with the statistics.
        dataset: the training split, unaugmented, at the size that the codec is for.
        num_workers: loading processes.
        device: to encode on.
        batch_size: images at a time.
    """

    codec: LatentCodec
    weights_path: str
    dataset: Dataset
    num_workers: int
    device: torch.device
    batch_size: int = 8

    def run(self) -> None:
        """Measure and store, unless the file has its statistics already (a resumed, finished run)."""
        wait_for_all()  # rank 0 may still be writing the weights
        codec = load_weights(self.codec, self.weights_path).to(self.device)
        if codec.latents_num_images.item() > 0:
            _logger.info("%s has its latent statistics already", self.weights_path)
            return
        mine = Subset(self.dataset, share(range(len(self.dataset))))  # type: ignore[arg-type]
        loader = DataLoader(mine, batch_size=self.batch_size, num_workers=self.num_workers)
        mean, std, num_images = measure_statistics(codec, loader, self.device)
        codec.set_statistics(mean, std, num_images)
        if is_rank_zero():
            save_weights(codec, self.weights_path, other_parts(self.weights_path))
            shown = [" ".join(f"{value:.3f}" for value in part.tolist()) for part in (mean, std)]
            _logger.info("latent mean %s, std %s over %d images, kept in %s", *shown, num_images, self.weights_path)
