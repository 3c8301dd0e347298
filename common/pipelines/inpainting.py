"""Holes in radiographs, filled by the generator at the radiograph's own size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import cg
from torch import Tensor

from ..data.transforms import resize_shorter_side
from ..diffusion.image_sampler import ImageSampler
from ..errors import SettingsError
from ..io.mask_files import read_mask
from .inputs import Image, as_radiograph
from .source_table import SourceTable
from .strategies import SampleRequest, Variation

Mask: TypeAlias = str | os.PathLike[str] | NDArray | Tensor
MASK_SUFFIXES = (".png", ".nii.gz", ".nii")


@dataclass(frozen=True)
class Hole:
    """A radiograph with a hole, and the square of it that the generator sees."""

    pixels: Tensor  # [1, H, W] in [0, 1]
    mask: NDArray[np.bool_]  # bool [H, W], True where the radiograph is to be drawn
    top: int  # first row of the square; its side is the shorter one of the radiograph
    left: int  # its first column

    @property
    def side(self) -> int:
        """Px of the square."""
        return min(self.mask.shape)

    def filled_square(self, size: int) -> tuple[Tensor, Tensor]:
        """Image with the hole filled smoothly, and hole, both [1, 1, size, size]."""
        filled = torch.from_numpy(membrane(self.pixels[0].numpy(), self.mask))[None]
        hole = resize_shorter_side(self._cut(torch.from_numpy(self.mask)[None].float()), size)
        return resize_shorter_side(self._cut(filled), size)[None], hole[None] > 0.01

    def paste(self, drawn: Tensor) -> Tensor:
        """A drawn square [1, S, S] into the hole: [1, H, W], equal to the radiograph bit for bit outside it.

        What is drawn is raised and lowered by the smoothest field that makes it meet the radiograph around the hole
        (Perez et al. 2003, Poisson Image Editing, eq. 4), so that no step of grey is left.
        """
        fitted = torch.nn.functional.interpolate(drawn[None], (self.side, self.side), mode="bicubic", antialias=True)
        square = self.pixels.new_zeros(self.pixels.shape)
        self._cut(square)[:] = fitted[0]
        offset = membrane((self.pixels - square)[0].numpy(), self.mask)
        result = self.pixels.clone()
        hole = torch.from_numpy(self.mask)
        result[0][hole] = (square[0] + torch.from_numpy(offset))[hole].clamp(0.0, 1.0)
        return result

    def _cut(self, image: Tensor) -> Tensor:
        return image[:, self.top : self.top + self.side, self.left : self.left + self.side]


def open_hole(image: Image, mask: Mask) -> Hole:
    """A radiograph and what is to be drawn of it.

    Args:
        image: in any form, see `as_radiograph`.
        mask: of the radiograph's own rows and columns, [H, W] or [1, H, W], or a file that `read_mask` reads; all that
            is not 0 is drawn.

    Raises:
        UnreadableRadiographError: the radiograph or the mask cannot be read.
        SettingsError: the mask has another size, is empty, leaves nothing, or does not fit in one square.
    """
    pixels = as_radiograph(image).pixels
    values = read_mask(mask) if isinstance(mask, str | os.PathLike) else np.asarray(mask)
    hole = values.reshape(values.shape[-2:]) != 0 if values.ndim == 3 and len(values) == 1 else values != 0
    if hole.shape != tuple(pixels.shape[1:]):
        raise SettingsError(f"mask: expected the radiograph's {tuple(pixels.shape[1:])}, found {hole.shape}")
    if not hole.any() or hole.all():
        raise SettingsError(f"mask: expected some pixels to draw and some to keep, found {hole.sum()} of {hole.size}")
    starts = []
    side = min(hole.shape)
    for axis, length in enumerate(hole.shape):
        inside = np.flatnonzero(hole.any(axis=1 - axis))
        first, last = int(inside[0]), int(inside[-1]) + 1
        if last - first > side:
            raise SettingsError(f"mask: {last - first} px of {hole.shape}; expected at most the shorter side's {side}")
        # The central square, as everywhere, unless the hole reaches out of it.
        starts.append(min(max((length - side) // 2, last - side), first))
    return Hole(pixels, hole, *starts)


def membrane(values: NDArray, hole: NDArray[np.bool_]) -> NDArray:
    """Values [H, W] with the hole filled by the solution of Laplace's equation; at borders of the image it is level."""
    number = np.full(hole.shape, -1)
    number[hole] = diagonal = np.arange(hole.sum())
    rows, columns = [diagonal], [diagonal]
    neighbours, right = np.zeros(len(diagonal)), np.zeros(len(diagonal))
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        other, beside = np.roll(number, -step, axis), np.roll(values, -step, axis)
        inside = np.ones(hole.shape, bool)
        np.moveaxis(inside, axis, 0)[-1 if step == 1 else 0] = False
        neighbours += inside[hole]
        unknown, given = hole & inside & (other >= 0), hole & inside & (other < 0)
        rows.append(number[unknown])
        columns.append(other[unknown])
        right[number[given]] += beside[given]
    where = np.concatenate(rows), np.concatenate(columns)
    entries = np.concatenate([neighbours, -np.ones(len(where[0]) - len(diagonal))])
    matrix = coo_array((entries, where), shape=(len(right), len(right))).tocsr()
    start = np.full(len(right), values[~hole].mean())
    solved, _ = cg(matrix, right, x0=start, rtol=1e-5, maxiter=20 * max(hole.shape))
    result = values.copy()
    result[hole] = solved
    return result


class Inpainting(Variation):
    """The sources themselves, with what their masks cover drawn by the generator, from tokens of the whole radiographs.

    `masked` are radiograph and mask of each source, as `open_hole` takes them; `settings` tell these from other masks.
    """

    name = "inpainting"
    shows_sources = True

    def __init__(
        self, table: SourceTable, masked: Sequence[tuple[Image, Mask]], num_per_source: int, seed: int, **settings: Any
    ) -> None:
        super().__init__(table, num_per_source, seed, **settings)
        self.masked = masked

    def images(self, sampler: ImageSampler, requests: Sequence[SampleRequest]) -> Sequence[Tensor]:
        """Each of its source's own size."""
        drawn = []
        for request in requests:
            hole = open_hole(*self.masked[request.sources[0]])
            square, covered = hole.filled_square(sampler.image_size)
            drawn.append(hole.paste(sampler.inpaint(square, covered, self.tokens([request]), [request.seed])[0]))
        return drawn


def masks_of(sources: Sequence[str], dataset_dir: str | Path, masks: str | Path | None) -> list[Path]:
    """The mask of each source: `masks` itself, or the file in it that has the source's place in `dataset_dir` and name.

    Raises:
        SettingsError: no masks, or none for a source.
    """
    if masks is None:
        raise SettingsError("masks: found null; the strategy inpainting needs a mask, or a folder of masks")
    folder = Path(masks)
    if folder.is_file():
        return [folder] * len(sources)
    chosen = []
    for source in sources:
        stem = folder / Path(os.path.relpath(source, dataset_dir)).with_suffix("")
        found = [path for suffix in MASK_SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()]
        if not found:
            suffixes = ", ".join(MASK_SUFFIXES)
            raise SettingsError(f"masks: expected {stem} with one of {suffixes} for {source}, found none")
        chosen.append(found[0])
    return chosen
