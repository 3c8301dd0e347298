"""Masks in the order in which MONAI reads their image's file, for writers that put them into a file as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .mask_files import stored_mask


class ToStoredOrderd(MapTransform):
    """Labels [H, W] under each key become a MetaTensor in the order and with the affine of the image's own file.

    Last in postprocessing, for the writer of MONAI Label, which takes arrays first axis across; see `stored_mask`.

    Args:
        keys: of the masks.
        image_key: of the image, whose file is under `<image_key>_path`.
    """

    def __init__(self, keys: Sequence[str], image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: dict) -> dict:
        """Turn every key of one item."""
        item = dict(data)
        for key in self.keys:
            labels = item[key].as_subclass(torch.Tensor).cpu().numpy()
            stored, affine = stored_mask(labels, item[f"{self.image_key}_path"])
            item[key] = MetaTensor(torch.from_numpy(stored), None if affine is None else torch.from_numpy(affine))
        return item
