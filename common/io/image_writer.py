"""Generated images: without the padding that a generator has learnt to draw; as PNG files that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import atomic_path
from ..intensity import stored_values

BRIGHT_SHARE = 0.1  # of a line's pixels: fewer may be above the threshold, as a denoiser leaves specks
BRIGHTEST_BLACK = 0.03  # grey level in [0, 1]; padding is 0 in the training images, and nearly so in samples
MIN_SHARE = 0.4  # of the rows, and of the columns, that has to be left


def trim_padding(image: Tensor) -> Tensor:
    """A copy of an image [C, H, W] in [0, 1] without black rows and columns at its border, as `PadResized` adds them.

    A line is black if at least nine tenths of its pixels are at or below `BRIGHTEST_BLACK`. Rows and columns are judged
    by the whole image: bars at the sides that leave less than a tenth of a row would make all of it black. So an image
    that would keep less than `MIN_SHARE`, such as one that is black all over, comes back whole.
    """
    bright = (image > BRIGHTEST_BLACK).any(dim=0).float()
    kept = []
    for shares in (bright.mean(dim=1), bright.mean(dim=0)):  # of the rows, of the columns
        lit = (shares > BRIGHT_SHARE).nonzero().flatten().tolist()
        if not lit or lit[-1] + 1 - lit[0] < MIN_SHARE * len(shares):
            return image.clone()
        kept.append(slice(lit[0], lit[-1] + 1))
    return image[:, kept[0], kept[1]].clone()


def write_png(pixels: Tensor, path: str | Path, bits: int = 8, provenance: Mapping[str, str] | None = None) -> Path:
    """Write a generated image [1, H, W] in [0, 1] as a grey PNG of 8 or 16 bits, atomically; returns the path.

    The same arguments give the same bytes. The file carries the text `Synthetic: true` and the provenance, nothing that
    names a patient; `PIL.Image.open(path).text` shows it. `read_radiograph` gives an 8-bit file back exactly (to the
    rounding); a 16-bit one it stretches, so for 16 bits that come back as they were use `synthetic_dicom`.

    Raises:
        ValueError: as `stored_values`.
    """
    image = Image.fromarray(stored_values(pixels, bits))
    text = PngInfo()
    for key, value in {**(provenance or {}), "Synthetic": "true"}.items():
        text.add_text(key, value)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)
    return Path(path)
