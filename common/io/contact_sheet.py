"""Contact sheets: rows of images with titles and captions, as a PNG or as an array for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import atomic_path

GAP = 4  # pixels between cells and at the border
TEXT_SIZE = 14  # pixels
TEXT_HEIGHT = 20  # pixels: one line of titles or captions
BACKGROUND, TEXT, PADDING = (255,) * 3, (0,) * 3, (200,) * 3  # the padding differs from black and white images


def reconstruction_rows(images: Tensor, reconstructions: Tensor) -> list[list[Tensor]]:
    """Of each image [B, 1, H, W] in [0, 1] a row of three: it, its reconstruction, |difference| × 4 up to 1."""
    differences = ((images.float() - reconstructions.float()).abs() * 4).clamp(0, 1)
    return [list(row) for row in zip(images, reconstructions, differences, strict=True)]


def contact_sheet_array(
    rows: Sequence[Sequence[Tensor]],
    column_titles: Sequence[str] | None = None,
    row_captions: Sequence[str | Sequence[str]] | None = None,
    scale: float = 1,
    footer: Callable[[int], Image.Image] | None = None,
) -> np.ndarray:
    """Draw the sheet: uint8, [H, W] if all images are grey, [H, W, 3] if any has colour (TensorBoard: "HW", "HWC").

    Rows of [1, H, W] or [3, H, W] in [0, 1] may have different lengths. Images of different sizes keep their shape and
    lie at the top left of cells of the largest one's size. Values are clipped to [0, 1]; NaN is drawn black. Titles are
    one for each column of the longest row; captions, one for each row or several side by side, stand above it and are
    shortened to their width. A `scale` above 1 enlarges (nearest neighbour), below it reduces (area average). The
    `footer`, a picture made for a width in px, lies below all rows.
    """
    columns = max(len(row) for row in rows)
    tiles = [[_tile(image, scale) for image in row] for row in rows]
    is_grey = all(tile.mode == "L" for row in tiles for tile in row)
    width = max(tile.width for row in tiles for tile in row)
    height = max(tile.height for row in tiles for tile in row)
    top = GAP + (TEXT_HEIGHT if column_titles else 0)
    pitch = height + GAP + (TEXT_HEIGHT if row_captions else 0)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), top + len(rows) * pitch), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    captions = [[each] if isinstance(each, str) else each for each in row_captions or ()]
    room = (sheet.width - GAP) // max((len(each) for each in captions), default=1)
    for column, title in enumerate(column_titles or ()):
        _text(draw, (GAP + column * (width + GAP), GAP), title, width)
    for r, row in enumerate(tiles):
        y = top + r * pitch
        if row_captions:
            for number, caption in enumerate(captions[r]):
                _text(draw, (GAP + number * room, y), caption, room - GAP)
            y += TEXT_HEIGHT
        for column, tile in enumerate(row):
            x = GAP + column * (width + GAP)
            sheet.paste(PADDING, (x, y, x + width, y + height))
            sheet.paste(tile, (x, y))
    if footer is not None:
        return np.asarray(below_each_other(sheet, footer(sheet.width)))
    return np.asarray(sheet.convert("L") if is_grey else sheet)


def below_each_other(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Two pictures in one, RGB, both at the left."""
    size = max(upper.width, lower.width), upper.height + lower.height
    whole = Image.new("RGB", size, BACKGROUND)
    whole.paste(upper, (0, 0))
    whole.paste(lower, (0, upper.height))
    return whole


def save_contact_sheet(
    rows: Sequence[Sequence[Tensor]],
    path: str | Path,
    column_titles: Sequence[str] | None,
    row_captions: Sequence[str | Sequence[str]] | None = None,
    scale: float = 1,
    footer: Callable[[int], Image.Image] | None = None,
) -> Path:
    """Write the sheet of `contact_sheet_array` as a PNG, atomically; returns the path."""
    sheet = Image.fromarray(contact_sheet_array(rows, column_titles, row_captions, scale, footer))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return Path(path)


def _tile(image: Tensor, scale: float) -> Image.Image:
    """One image as an 8-bit picture at the sheet's scale."""
    values = torch.nan_to_num(image.detach().as_subclass(torch.Tensor).float(), nan=0.0).clamp(0, 1)
    pixels = (values * 255).round().to(torch.uint8).cpu().numpy()
    tile = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    size = max(1, round(tile.width * scale)), max(1, round(tile.height * scale))
    return tile.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _text(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, width: int) -> None:
    """Draw one line, cut with dots where it is wider than `width` pixels; Pillow's own font has no "×" or "–"."""
    font = ImageFont.load_default(size=TEXT_SIZE)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "...", font=font) > width:
            text = text[:-1]
        text += "..."
    draw.text(position, text, fill=TEXT, font=font)
