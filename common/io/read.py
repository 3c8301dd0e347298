"""`read_radiograph`: one function for every format, one error for every failure."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch

from .dicom import read_dicom
from .formats import detect_format
from .nifti import read_nifti
from .raster import read_raster
from .scaling import Float32Array
from .types import Radiograph, RefusalError, with_path

MIN_SIDE, MAX_ASPECT = 3, 10  # px; longer over shorter side, which is at most 4 where legs or spines are stitched


def read_radiograph(path: str | os.PathLike[str]) -> Radiograph:
    """Read one radiograph; the format is told by the content, not by the name.

    Args:
        path: a DICOM file (with or without preamble), PNG, JPEG, TIFF of one page or NIfTI of one slice.

    Returns:
        The image, float32 [1, H, W] in [0, 1], with its spacing in mm and modality where known.

    Raises:
        UnreadableRadiographError: the file is missing, damaged, unsupported, no single 2-D image, constant, or of a
            size that no radiograph has.
    """
    path = Path(path)
    try:
        # The libraries warn about every oddity of a header; what matters is either handled here or raised.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = detect_format(path)
            spacing, modality = None, ""
            if kind == "dicom":
                unit, spacing, modality = read_dicom(path)
            elif kind == "raster":
                unit = read_raster(path)
            else:
                unit, spacing = read_nifti(path)
            return Radiograph(_to_tensor(unit), spacing, path, modality)
    except Exception as error:
        raise with_path(error, path) from error


def _to_tensor(unit: Float32Array) -> torch.Tensor:
    """Check the image [H, W] and give it a channel."""
    height, width = unit.shape
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise RefusalError(
            f"an image of {height} × {width} pixels",
            f"sides of at least {MIN_SIDE} pixels, none more than {MAX_ASPECT} times the other",
            "It may be a thumbnail, a strip or a broken export.",
        )
    low, high = float(unit.min()), float(unit.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise RefusalError("pixels that are no numbers", "finite values")
    if low == high:
        raise RefusalError(
            "an image whose pixels are all the same", "a radiograph", "Check the export; the image is blank."
        )
    return torch.from_numpy(np.ascontiguousarray(unit, dtype=np.float32)).unsqueeze(0)
