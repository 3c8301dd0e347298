"""Drawn radiographs with masks: what the tests of the dental bundle share."""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data.phantom import draw_chest_phantom

# A network that trains in seconds; the sizes that smoke.yaml and smoke_pretrain.yaml set.
TINY = {"channels": [8, 16, 16], "attention_levels": [False, False, True], "num_head_channels": 8, "norm_num_groups": 8}


def write_labelled_folder(folder: Path, count: int, size: tuple[int, int] = (45, 61), num_val: int = 2) -> list[Path]:
    """Write images, masks (values of the periapical set) and a manifest; the last `num_val` are the val split.

    The mask says where the image is bright, so that there is something to learn; 11 is decay.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for number in range(count):
        pixels = draw_chest_phantom(*size, seed=number)[0]
        mask = torch.zeros(size, dtype=torch.uint8)
        mask[pixels > 0.35] = 2
        mask[pixels > 0.65] = 11
        name = f"tooth_{number}.png"
        Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(folder / "images" / name)
        Image.fromarray(mask.numpy()).save(folder / "masks" / name)
        split = "val" if number >= count - num_val else "train"
        rows.append([f"images/{name}", f"masks/{name}", f"patient{number}", split])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "mask", "patient_id", "split"], *rows])
    return [folder / row[0] for row in rows]


def mask_of(image: Path) -> np.ndarray:
    """The mask as it is on disk."""
    return np.asarray(Image.open(image.parent.parent / "masks" / image.name))
