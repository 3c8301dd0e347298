"""The classifier on frozen features as a cell of the label-efficiency grid, on the images of the fine-tunings."""

from __future__ import annotations

from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from ..diffusion.noise_schedule import NoiseSchedule
from ..networks.pixel_denoiser import PixelDenoiser
from ..networks.weights import load_weights
from .label_efficiency import Cell, FineTuning
from .pixel_classifier import PixelClassifier

CLASSIFIER = "pixel_classifier"  # the method's name
SIZES = ("channels", "num_res_blocks", "attention_levels", "num_head_channels", "norm_num_groups", "patch_size")


class PixelClassifying:
    """Fit the classifier for a cell, on the same labelled images at the same size as a fine-tuning.

    Args:
        fine_tuning: for bundle, data and settings; its `pretrained` names the denoiser's weights.
        timesteps: share of the schedule's T at which features are taken; the paper's 50, 150 and 250 of 1000.
        num_blocks: of the decoder, counted from the end; MONAI's blocks are levels.
        ensemble_size: members.
        max_steps: of each member.
        batch_pixels: in a step.
    """

    def __init__(
        self,
        fine_tuning: FineTuning,
        timesteps: tuple[float, ...] = (0.05, 0.15, 0.25),
        num_blocks: int = 3,
        ensemble_size: int = 5,
        max_steps: int = 1000,
        batch_pixels: int = 256,
    ) -> None:
        self.fine_tuning = fine_tuning
        self.timesteps = timesteps
        self.num_blocks = num_blocks
        self.ensemble_size = ensemble_size
        self.max_steps = max_steps
        self.batch_pixels = batch_pixels

    def __call__(self, cell: Cell) -> PixelClassifier:
        """Return the fitted classifier."""
        workflow = self.fine_tuning.workflow(cell, "none", self.fine_tuning.run_dir(cell))
        workflow.initialize()
        dataset = workflow.parser.get_parsed_content("train::dataset")
        items = [dataset[index] for index in range(len(dataset))]
        images, labels = (torch.stack([_plain(item[key]) for item in items]) for key in ("image", "label"))
        denoiser, schedule = self._denoiser(self.fine_tuning.pretrained[cell.method], workflow.parser["network_def"])
        timesteps = [round(share * schedule.num_train_timesteps) for share in self.timesteps]
        levels = len(denoiser.unet.up_blocks)
        blocks = range(max(0, levels - self.num_blocks), levels)
        num_classes = workflow.parser.get_parsed_content("num_classes")
        classifier = PixelClassifier(denoiser, schedule, timesteps, blocks, num_classes, self.ensemble_size, cell.seed)
        return classifier.fit(images, labels, self.max_steps, self.batch_pixels)

    def _denoiser(self, path: str, network_def: dict[str, Any]) -> tuple[PixelDenoiser, NoiseSchedule]:
        """As pretrain.yaml builds them, of the segmenter's sizes, with the weights at `path`."""
        parser = ConfigParser()
        parser.read_config(self.fine_tuning.bundle_root / "configs" / "pretrain.yaml")
        for key in SIZES:
            parser[f"denoiser_def::{key}"] = network_def[key]
        denoiser = parser.get_parsed_content("denoiser_def")
        return load_weights(denoiser, path), parser.get_parsed_content("schedule")


def _plain(image: Tensor) -> Tensor:
    return image.as_subclass(torch.Tensor)
