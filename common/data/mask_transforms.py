"""From an image and its mask to a network's input, and back to the image's own rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..errors import DatasetError
from ..io import UnreadableRadiographError
from ..io.mask_files import read_mask, written_table
from ..io.segmentation_classes import OWN_LABELS, ClassTable, class_table
from .transforms import resized

GEOMETRY_KEY = "geometry"
NAMED_PROBLEMS = 10  # in a message


class LoadMaskd(MapTransform):
    """Replace the path under each key by its labels, int64 [1, H, W], and keep the path under `<key>_path`.

    An item's own "mask_values", where it has one, goes before the argument: the data set that the masks come from, as
    `classes.mask_values` names it, or "labels" where they hold the labels of `classes` already, such as masks that this
    bundle wrote. What the file itself says goes before both. Masks must have the size of the item's "image".

    Raises:
        UnreadableRadiographError: when called, a file that is no mask, or one of another size than its image.
        DatasetError: when called, a value without a label, or the file says that its labels are of another table.
    """

    def __init__(self, keys: Sequence[str], classes: ClassTable, mask_values: str) -> None:
        super().__init__(keys)
        self.classes, self.mask_values = classes, mask_values

    def __call__(self, data: dict) -> dict:
        """Load every key of one item."""
        item = dict(data)
        rows, columns = item["image"].shape[-2:]
        for key in self.keys:
            path = str(item[key])
            labels = mask_labels(path, self.classes, item.get("mask_values") or self.mask_values)
            if labels.shape != (rows, columns):
                raise UnreadableRadiographError(
                    path,
                    f"a mask of {labels.shape[0]} × {labels.shape[1]} pixels",
                    f"{rows} × {columns}, the rows × columns of {item.get('image_path', 'its image')}",
                    "Check that mask and image belong together and are not turned.",
                )
            item |= {key: torch.from_numpy(labels)[None], f"{key}_path": path}
        return item


def mask_labels(path: str, classes: ClassTable, mask_values: str) -> NDArray[np.int64]:
    """The labels [H, W] of a mask's file, see `LoadMaskd`.

    Raises:
        UnreadableRadiographError: it is no mask.
        DatasetError: a value without a label, or the file says that it holds labels of another table.
    """
    values, written = read_mask(path), written_table(path)
    dataset = None if mask_values == OWN_LABELS or written == classes.name else mask_values
    try:
        if written not in (None, classes.name):
            meant = class_table(str(written)).mask_values.get(mask_values, {})
            if not meant or any(value != label for value, label in meant.items()):
                raise DatasetError(
                    f"found a mask with the labels of class table {written}; expected those of {classes.name}. Choose "
                    "the table that the masks were drawn for."
                )
            dataset = mask_values
        return classes.map_mask(values, dataset)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def check_mask_values(items: Sequence[Mapping[str, str]], classes: ClassTable) -> None:
    """Refuse masks with values that have no label by one `DatasetError`; items hold "mask" and "mask_values"."""
    problems = []
    for item in items:
        try:
            mask_labels(item["mask"], classes, item["mask_values"])
        except DatasetError as error:
            problems.append(str(error))
    if problems:
        named, more = "; ".join(problems[:NAMED_PROBLEMS]), "; …" if len(problems) > NAMED_PROBLEMS else ""
        raise DatasetError(f"{len(problems)} of {len(items)} masks cannot be used: {named}{more}")


class PadGeometry(NamedTuple):
    """How an image was resized and padded, all in pixels."""

    height: int  # of the original
    width: int
    resized_height: int  # before padding
    resized_width: int
    top: int  # rows of padding above
    left: int

    @classmethod
    def of(cls, geometry: PadGeometry | Tensor) -> PadGeometry:
        """From what `PadResized` leaves in an item, [6]; batches of them are [B, 6]."""
        if isinstance(geometry, PadGeometry):
            return geometry
        if geometry.shape != (6,):
            raise ValueError(f"geometry: found {tuple(geometry.shape)}; expected [6], that of one image.")
        return cls(*(int(number) for number in geometry))


class PadResized(MapTransform):
    """Resize so that the image fits a size, then pad with zeros on all sides; the aspect ratio is kept.

    `geometry` int64 [6] in the item says how; `to_original` undoes it.

    Args:
        keys: images [1, H, W], resized bilinearly, and masks [1, H, W] of integers, by majority; all of one size.
        size: px, (rows, columns) that the image has to fit into, or one number for both.
        turn: exchange rows and columns of `size` for an image that is taller than wide where `size` is wider than tall,
            and the other way round. Images of a batch then may differ in size.
        pad: False leaves the padding out.

    Raises:
        ValueError: less than 1 px; when called, images of several sizes.
    """

    def __init__(self, keys: Sequence[str], size: int | Sequence[int], turn: bool = False, pad: bool = True) -> None:
        super().__init__(keys)
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        if min(self.size) < 1:
            raise ValueError(f"PadResized: found size {size}; expected at least 1 px.")
        self.turn, self.pad = turn, pad

    def __call__(self, data: dict) -> dict:
        """Resize and pad every key of one item."""
        item = dict(data)
        sizes = {key: tuple(item[key].shape[-2:]) for key in self.keys}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"PadResized: found sizes {sizes}; expected the same rows × columns.")
        height, width = next(iter(sizes.values()))
        rows, columns = self.size
        if self.turn and (height - width) * (rows - columns) < 0:
            rows, columns = columns, rows
        factor = min(rows / height, columns / width)
        size = max(1, round(height * factor)), max(1, round(width * factor))
        below, beside = (rows - size[0], columns - size[1]) if self.pad else (0, 0)
        top, left = below // 2, beside // 2
        for key in self.keys:
            image = item[key]
            image = resized(image, size) if image.is_floating_point() else resized_labels(image, size)
            item[key] = F.pad(image, (left, beside - left, top, below - top))
        item[GEOMETRY_KEY] = torch.tensor(PadGeometry(height, width, *size, top, left))
        return item


def resized_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """The label with the largest share of each new pixel, [1, H, W].

    Taking the nearest pixel would shift masks by half a pixel where the side is halved, and drop thin canals in parts.
    """
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    found = labels.unique()
    shares = [resized((labels == label).float(), size) for label in found]
    return found[torch.cat(shares).argmax(dim=0, keepdim=True)]


def to_original(probabilities: Tensor, geometry: PadGeometry | Tensor) -> Tensor:
    """Undo PadResized on a network's output: cut the padding off and resize bilinearly to the original size.

    From probabilities or logits of one image, float [C, H', W'] of the padded size, with its geometry, to float32
    [C, H, W], rows and columns exactly those of the original; take the argmax afterwards.

    Raises:
        ValueError: the output is smaller than the geometry says.
    """
    geometry = PadGeometry.of(geometry)
    bottom, right = geometry.top + geometry.resized_height, geometry.left + geometry.resized_width
    if probabilities.ndim != 3 or probabilities.shape[-2] < bottom or probabilities.shape[-1] < right:
        raise ValueError(
            f"to_original: found {tuple(probabilities.shape)}; expected [C, H', W'] of at least {bottom} × {right}. "
            "Give one image's output and its own geometry."
        )
    values = probabilities.as_subclass(torch.Tensor)[:, geometry.top : bottom, geometry.left : right]
    return resized(values.float(), geometry[:2])


def label_map(logits: Tensor, geometry: PadGeometry | Tensor) -> Tensor:
    """Labels uint8 [1, H, W] at the original size from logits [C, H', W'] of one image, C at most 256."""
    return to_original(logits.float().softmax(dim=0), geometry).argmax(dim=0, keepdim=True).to(torch.uint8)


class ToOriginald(MapTransform):
    """`to_original` for configs: [C, H', W'] under each key becomes [C, H, W] by the item's `geometry`."""

    def __call__(self, data: dict) -> dict:
        """Undo PadResized for every key of one item."""
        return {**data, **{key: to_original(data[key], data[GEOMETRY_KEY]) for key in self.keys}}


class CleanUpd(MapTransform):
    """`clean_up` for configs, of labels [1, H, W] or [H, W] under each key, by names of the classes."""

    def __init__(
        self, keys: Sequence[str], classes: ClassTable, keep_largest: Sequence[str], min_area_px: Mapping[str, int]
    ) -> None:
        super().__init__(keys)
        self.keep_largest = [classes.label_of(name) for name in keep_largest]
        self.min_area_px = {classes.label_of(name): area for name, area in min_area_px.items()}

    def __call__(self, data: dict) -> dict:
        """Clean every key of one item."""
        item = dict(data)
        for key in self.keys:
            mask = item[key].as_subclass(torch.Tensor)
            cleaned = clean_up(mask.reshape(mask.shape[-2:]).cpu().numpy(), self.keep_largest, self.min_area_px)
            item[key] = torch.from_numpy(cleaned).reshape(mask.shape).to(mask)
        return item


def clean_up(
    mask: NDArray[np.integer], keep_largest: Sequence[int] = (), min_area_px: Mapping[int, int] | None = None
) -> NDArray[np.integer]:
    """A copy of labels [H, W] without some connected components (8 neighbours), whose pixels become background.

    Of labels in `keep_largest` only the largest component stays, of equals the first in reading order; of those in
    `min_area_px` components of fewer pixels go.
    """
    cleaned = mask.copy(order="C")
    areas_by_label = min_area_px or {}
    for label in sorted({*keep_largest, *areas_by_label}):
        components, count = ndimage.label(mask == label, structure=np.ones((3, 3), bool))
        areas = np.bincount(components.ravel(), minlength=count + 1)
        stays = areas >= areas_by_label.get(label, 0)
        if count and label in keep_largest:
            stays &= np.arange(count + 1) == 1 + areas[1:].argmax()
        stays[0] = True
        cleaned[~stays[components]] = 0
    return cleaned
