"""A folder of phantoms with lung masks, as zero-shot lungs take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data.phantom import draw_chest_phantom, draw_lung_mask
from common.evaluation.report import write_rows

DEFINITIONS = "lungs incl. what lies behind the heart", "lung fields, heart excluded"  # as drawn; one says otherwise


def lung_folder(root: Path, num_train: int, num_val: int, size: tuple[int, int] = (72, 80)) -> Path:
    """Phantoms with their lungs as masks, 0 and 255, listed in lung_masks.csv; images of two sources."""
    for folder in ("images", "lung_masks"):
        (root / folder).mkdir(parents=True)
    rows = []
    for number in range(num_train + num_val):
        pixels = (draw_chest_phantom(*size, seed=number)[0] * 255).round().to(torch.uint8).numpy()
        lungs = draw_lung_mask(*size, seed=number)[0].numpy().astype(np.uint8) * 255
        files = {"image": f"images/{number}.png", "mask_file": f"lung_masks/{number}.png"}
        Image.fromarray(pixels).save(root / files["image"])
        Image.fromarray(lungs).save(root / files["mask_file"])
        about = {"source": f"clinic{number % 2}", "mask_definition": DEFINITIONS[number % 2]}
        rows.append({**files, **about, "split": "train" if number < num_train else "val"})
    write_rows(root / "lung_masks.csv", rows)
    return root
