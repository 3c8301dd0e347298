"""What the files of a data set are like, and what about each deserves a look before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..io import UnreadableRadiographError, read_radiograph
from ..io.mask_files import read_mask
from ..io.read import detect_format, source_history
from ..io.scaling import sample
from .duplicates import linked_groups
from .typical_images import TypicalImages

# Limits of what is normal, with a margin to 550 chest and dental radiographs: their spans are 0.28 or more, at most 6 %
# of their pixels are white and 34 % black.
LEAST_SPAN, MOST_WHITE, MOST_BLACK = 0.2, 0.2, 0.5
MOST_ELONGATED = 1.5  # times the aspect ratio that a network sees
LEAST_LETTERS = 4  # in one line; side markers have one to three

_TEXT_SIDE = 1024  # px of the longer side at most, when text is looked for
_STROKE, _CONTRAST = 9, 0.3  # px and grey: strokes are narrower, and brighter or darker than what surrounds them
_LETTER_HEIGHT = (5, 64)  # px


@dataclass(frozen=True)
class Look:
    """One file."""

    image: str  # its path
    problem: str = ""  # why it, or its mask, cannot be used; "" if it can, as the rest is then known
    kind: str = ""  # format, and modality or mode of the pixels, such as "DICOM CR" or "PNG L"
    size: tuple[int, int] = (0, 0)  # rows and columns
    span: float = 1.0  # of the grey values, from the 2nd to the 98th percentile, in [0, 1]
    white: float = 0.0  # share of pixels that are 1
    black: float = 0.0  # share of pixels that are 0
    letters: int = 0  # in the longest line of what looks like text
    says_burned_in: bool = False  # the header does
    # To the training images of each bundle, by its chain, see `TypicalImages`; and with black and white exchanged
    unlikeness: Mapping[str, float] = field(default_factory=dict)
    inverted_unlikeness: Mapping[str, float] = field(default_factory=dict)


def look_at(item: Mapping[str, Any], typical: Mapping[str, TypicalImages]) -> Look:
    """Read a file, and its mask if it has one, and measure it; what cannot be read becomes the `problem`."""
    path = Path(item["image"])
    try:
        radiograph = read_radiograph(path)
        pixels, (rows, columns) = radiograph.pixels, radiograph.pixels.shape[1:]
        if "mask" in item and (found := read_mask(item["mask"]).shape) != (rows, columns):
            return Look(str(path), f"found a mask of {found[0]} × {found[1]} px; expected {rows} × {columns}")
    except UnreadableRadiographError as error:
        mask = "" if Path(error.path) == path else f"its mask {Path(error.path).name}: "
        return Look(str(path), f"{mask}found {error.found}; expected {error.expected}. {error.hint}")
    values = sample(pixels[0].numpy())
    low, high = np.percentile(values, (2, 98))
    kind = _kind(path, radiograph.modality)
    return Look(
        image=str(path),
        kind=kind,
        size=(rows, columns),
        span=float(high - low),
        white=float((values >= 1).mean()),
        black=float((values <= 0).mean()),
        letters=letters_in_line(pixels),
        says_burned_in=kind.startswith("DICOM") and source_history(path).burned_in,
        unlikeness={name: found(pixels) for name, found in typical.items()},
        inverted_unlikeness={name: found(1 - pixels) for name, found in typical.items()},
    )


def likely_chain(looks: Sequence[Look]) -> str:
    """The chain whose training images these are most like, by the median over files that can be read, at least one."""
    names = list(looks[0].unlikeness)
    return min(names, key=lambda name: float(np.median([look.unlikeness[name] for look in looks])))


def oddities(look: Look, network_size: tuple[int, int], chest: str) -> dict[str, str]:
    """What is odd about a file: kind ("unreadable", "polarity", "range", "size", "text") to a sentence.

    Networks of the chain see `network_size` px, H × W; `chest` is the chain of chest films. Black and white count as
    exchanged where only the exchange makes one of the picture. So 539 of 548 inverted chest films are told, and none as
    they are; of 300 dental ones 4 are by mistake, and inverted ones are not told.
    """
    if look.problem:
        return {"unreadable": look.problem}
    found = {}
    before, after = look.unlikeness[chest], look.inverted_unlikeness[chest]
    if after <= 1 < before:
        found["polarity"] = f"unlikeness to chest films {before:.2f}, with black and white exchanged {after:.2f}"
    if look.span < LEAST_SPAN:
        found["range"] = f"96 % of the pixels lie within {look.span:.2f} of the range from black to white"
    elif look.white > MOST_WHITE or look.black > MOST_BLACK:
        found["range"] = f"{look.white:.0%} of the pixels are white, {look.black:.0%} black"
    (short, long), (least, most) = sorted(look.size), sorted(network_size)
    size = f"{look.size[0]} × {look.size[1]} px"
    if short < least or long < most:
        found["size"] = f"{size}, fewer than the {least} × {most} that the networks see"
    elif long / short > MOST_ELONGATED * most / least:
        found["size"] = f"{size}, {long / short:.1f} times as long as wide"
    if look.says_burned_in or look.letters >= LEAST_LETTERS:
        seen = f"a line of {look.letters} letters or so" if look.letters >= LEAST_LETTERS else "no letters are seen"
        found["text"] = f"the header says so; {seen}" if look.says_burned_in else seen
    return found


def letters_in_line(pixels: Tensor) -> int:
    """Letters in the longest line of what looks like text burned into an image [1, H, W] in [0, 1].

    Letters are thin strokes, brighter or darker than what surrounds them, of one height and beside each other. Of a
    name and a date of 10 to 36 px, drawn onto 104 radiographs, nine in ten are found; of 700 without, one was named: it
    had a time of day in its corner. Turned text, and words of three letters, are not looked for.
    """
    scale = max(1.0, max(pixels.shape) / _TEXT_SIDE)
    size = [max(1, round(side / scale)) for side in pixels.shape[1:]]
    image = F.interpolate(pixels[None], size, mode="area")[0, 0].numpy()
    return max(_longest_line(picture) for picture in (image, 1 - image))


def _longest_line(image: NDArray[np.float32]) -> int:
    strokes = ndimage.white_tophat(image, size=(_STROKE, _STROKE)) > _CONTRAST
    parts = ndimage.find_objects(ndimage.label(strokes, np.ones((3, 3)))[0])
    boxes = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in parts]
    least, most = _LETTER_HEIGHT
    letters = [box for box in boxes if least <= box[1] - box[0] <= most and box[3] - box[2] <= 1.5 * (box[1] - box[0])]
    if len(letters) < LEAST_LETTERS:
        return 0
    top, bottom, left, right = np.array(sorted(letters, key=lambda box: box[2])).T
    height = np.maximum.outer(bottom - top, bottom - top)
    overlap = np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)
    gap = left[None] - right[:, None]
    beside = (overlap >= 0.6 * height) & (gap <= 0.8 * height) & (gap >= -0.2 * height)
    links = [(int(one), int(other)) for one, other in np.argwhere(np.triu(beside, 1))]
    return max((len(line) for line in linked_groups(len(letters), links)), default=0)


def _kind(path: Path, modality: str) -> str:
    found = detect_format(path)
    if found == "dicom":
        return f"DICOM {modality}".strip()
    if found != "raster":
        return "NIfTI"
    try:
        with Image.open(path) as picture:
            return f"{picture.format} {picture.mode}"
    except OSError:  # of the many kinds of TIFF, Pillow knows a part
        return "TIFF"
