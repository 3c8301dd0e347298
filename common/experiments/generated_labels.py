"""Labels from the generator as a cell of the label-efficiency grid: generated radiographs, labelled by an ensemble.

The ensemble is fine-tuned on the cell's own labelled images, so that no other label is used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from monai.transforms import Compose
from torch import Tensor, nn

from ..data.datalists import radiograph_items
from ..data.dataset import RadiographDataset
from ..data.mask_transforms import OWN_LABELS, PadResized
from ..data.transforms import LoadRadiographd
from ..io.segmentation_classes import ClassTable
from .label_efficiency import Cell, FineTuning
from .pseudo_labels import pseudo_label, select_by_agreement, write_pseudo_labelled

GENERATED = "ddpm_generated"  # the method's name
ENSEMBLE = "ddpm"  # that of the fine-tunings which label


class GeneratedLabels:
    """Fine-tune a cell on its labelled images and on generated ones, half of the draws each.

    Args:
        fine_tuning: for bundle, data and settings; its `pretrained` names the denoiser's weights, for the ensemble too.
        generated: folder that generate.yaml wrote.
        image_size: H, W that images are made to fit.
        classes: the labels.
        num_members: of the ensemble, fine-tunings that differ in their seed alone.
        keep_share: of the generated images, those on which the members agree most.
    """

    def __init__(
        self,
        fine_tuning: FineTuning,
        generated: str,
        image_size: tuple[int, int],
        classes: ClassTable,
        num_members: int = 2,
        keep_share: float = 0.5,
    ) -> None:
        self.fine_tuning = fine_tuning
        self.images = load_images(generated, image_size)
        self.classes = classes
        self.num_members = num_members
        self.keep_share = keep_share

    def __call__(self, cell: Cell) -> nn.Module:
        """Return the network."""
        # As the grid's cells without generated images: where those were trained, their networks are taken.
        alone = replace(cell, method=ENSEMBLE)
        members = [self.fine_tuning(replace(alone, member=number)) for number in range(self.num_members)]
        found = pseudo_label(members, self.images)
        kept = select_by_agreement(found.scores, self.keep_share)
        folder = self.fine_tuning.run_dir(cell) / "generated"
        write_pseudo_labelled(folder, self.images[kept], found.masks[kept], found.scores[kept], self.classes, kept)
        # Their masks hold the labels of the table, whatever the data set's own hold.
        extra = [
            {"image": item["image"], "label": item["mask"], "mask_values": OWN_LABELS}
            for item in radiograph_items(folder, "train", 0.0, 0)
        ]
        return self.fine_tuning(cell, extra)


def load_images(folder: str | Path, image_size: tuple[int, int]) -> Tensor:
    """All radiographs of a folder [N, 1, H, W] in [0, 1], as the network takes them."""
    transform = Compose([LoadRadiographd(["image"]), PadResized(["image"], image_size)])
    dataset = RadiographDataset(radiograph_items(folder, "all", 0.0, 0), transform)
    return torch.stack([dataset[index]["image"].as_subclass(torch.Tensor) for index in range(len(dataset))])
