"""Generated images as PNG files that say of themselves that they are synthetic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import atomic_path
from ..intensity import stored_values


def write_png(pixels: Tensor, path: str | Path, bits: int = 8, provenance: Mapping[str, str] | None = None) -> Path:
    """Write a generated image as a grey PNG, atomically; the same arguments give the same bytes.

    The file carries the text `Synthetic: true` and the provenance, so that a picture that leaves its folder still
    says what it is; `PIL.Image.open(path).text` shows it.

    `read_radiograph` gives an 8-bit file back exactly (to the rounding). A 16-bit one it stretches between its 0.5 and
    99.5 percentiles, as it does every 16-bit image whose header has no window; for 16 bits that come back as they
    were, use `synthetic_dicom`.

    Args:
        pixels: [1, H, W] in [0, 1].
        path: of the file; its folder is made if need be.
        bits: 8 or 16.
        provenance: how the image was made, a text each; nothing that names a patient.

    Returns:
        The path.

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
