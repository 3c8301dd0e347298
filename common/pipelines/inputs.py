"""What pipelines take: radiographs as paths, arrays or tensors, bundles as folders or zips, devices by name."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor

from ..checks import check_device
from ..errors import WeightsError
from ..io import Radiograph, UnreadableRadiographError, read_radiograph
from ..io.types import IN_MEMORY

Image: TypeAlias = str | os.PathLike[str] | NDArray | Tensor | Radiograph


def as_radiograph(image: Image, spacing_mm: tuple[float, float] | None = None) -> Radiograph:
    """One radiograph, whatever form it has.

    Args:
        image: path of a file that `read_radiograph` knows; or pixels [H, W] or [1, H, W], bone bright: floats in
            [0, 1], or all of the range of uint8 or uint16.
        spacing_mm: between pixel centres (down the rows, along the columns), of pixels; a file says its own.

    Raises:
        UnreadableRadiographError: as of `read_radiograph`, or pixels of another shape or range.
    """
    if isinstance(image, Radiograph):
        return image
    if isinstance(image, str | os.PathLike):
        return read_radiograph(image)
    values = image.detach().cpu() if isinstance(image, Tensor) else torch.as_tensor(np.asarray(image))
    values = values.as_subclass(torch.Tensor)
    pixels = values[None] if values.ndim == 2 else values
    if pixels.ndim != 3 or len(pixels) != 1 or not pixels.numel():
        raise UnreadableRadiographError(
            IN_MEMORY, f"shape {tuple(values.shape)}", "[H, W] or [1, H, W]", "Give one image of one channel."
        )
    full = {torch.uint8: 255, torch.uint16: 65535}.get(pixels.dtype, 1)
    unit = pixels.to(torch.float64 if full > 1 else pixels.dtype).div(full).float()
    low, high = float(unit.min()), float(unit.max())
    if not (low >= 0 and high <= 1) or low == high:  # NaN is neither
        raise UnreadableRadiographError(
            IN_MEMORY,
            f"{pixels.dtype} from {low:.4g} to {high:.4g}",
            "floats in [0, 1], uint8 or uint16, not all the same",
            "Scale the pixels, air dark and bone bright.",
        )
    return Radiograph(unit.contiguous(), spacing_mm, IN_MEMORY, "")


def as_list(images: Any) -> list[Image]:
    """One image, or several: a list, or a batch [B, 1, H, W]."""
    is_batch = isinstance(images, Tensor | np.ndarray) and images.ndim == 4
    return list(images) if is_batch or isinstance(images, list | tuple) else [images]


def pick_device(device: str | torch.device) -> torch.device:
    """A device; "auto" takes a GPU where there is one.

    Raises:
        SettingsError: no such device.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check_device(device)


class OpenBundle:
    """The weights of a bundle, from its folder or its zip; what was unpacked is removed with this object.

    Raises:
        WeightsError: no bundle there.
    """

    def __init__(self, bundle: str | os.PathLike[str]) -> None:
        path = Path(bundle).expanduser()
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        if path.is_file() and zipfile.is_zipfile(path):
            self._unpacked = tempfile.TemporaryDirectory()
            self.models = _unpack_models(path, Path(self._unpacked.name))
        else:
            self.models = path / "models"
        if not self.models.is_dir():
            raise WeightsError(f"{bundle}: found no folder models in it; expected a bundle's folder or its zip")


def _unpack_models(archive: Path, folder: Path) -> Path:
    """Unpack what lies in `models`, no code; returns where that is."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.namelist() if "models" in PurePosixPath(member).parts[:2]]
            file.extractall(folder, members)  # which keeps all below the folder
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{archive} is damaged ({error}); copy it again from where it came from") from error
    return next(iter(sorted(folder.glob("models")) + sorted(folder.glob("*/models"))), folder / "models")


def read_generated(path: Path) -> Tensor:
    """A PNG as it was written, [1, H, W] in [0, 1]; `read_radiograph` stretches 16 bits, and refuses one grey."""
    with Pictures.open(path) as picture:
        pixels = np.asarray(picture)
    return torch.from_numpy(pixels.astype(np.float32))[None] / np.iinfo(pixels.dtype).max
