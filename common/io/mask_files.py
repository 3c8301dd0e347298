"""Masks in files: numbers that are labels, so nothing may scale, interpolate or compress them.

Rows and columns are those that `read_radiograph` gives for an image of the same orientation.
"""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..files import atomic_path
from .nifti import display, linear_part, plane_axes, read_header, read_plane, undo_display
from .raster import orientation_of, turned
from .read import detect_format
from .scaling import check_size
from .segmentation_classes import TABLES, ClassTable
from .types import RefusalError, with_path

_EXPECTED = "a mask as PNG of one channel or as NIfTI of one slice, its pixels whole numbers from 0"
_SPATIAL_UNIT_MM = 2
_LABELS_OF = "labels of class table "
_GEOMETRY = (  # both affines of a NIfTI header with their codes, zooms and unit
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
# Labels that were scaled into integers come back as 1.00000004, or as far from whole as half a step of those integers;
# probabilities do not all lie as near to whole numbers.
_WHOLE_WITHIN, _MOST_WITHIN = 1e-3, 0.1


def read_mask(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read the numbers of a mask: a PNG, grey, palette (its indices count) or RGB with equal channels, or a NIfTI.

    Returns:
        int64 [H, W], 0 or more, turned as its image is.

    Raises:
        UnreadableRadiographError: the file is missing, damaged, lossy, or holds something else.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():  # as `read_radiograph`
            warnings.simplefilter("ignore")
            kind = detect_format(path, _EXPECTED)
            if kind == "dicom":
                raise RefusalError("a DICOM file", _EXPECTED, "Convert the segmentation to PNG or NIfTI.")
            return _read_png(path) if kind == "raster" else _read_nifti(path)
    except Exception as error:
        raise with_path(error, path, _EXPECTED) from error


def written_table(path: str | os.PathLike[str]) -> str | None:
    """Name of the class table whose labels a mask holds, if this package wrote it: by its palette or description."""
    path = Path(path)
    if detect_format(path) == "raster":
        with Image.open(path) as image:
            found = (image.getpalette() or []) if image.mode == "P" else []
        return next((table.name for table in TABLES if found and table.palette()[: len(found)] == found), None)
    said = bytes(read_header(path)["descrip"]).rstrip(b"\0").decode("latin-1")
    return next((table.name for table in TABLES if said == _LABELS_OF + table.name), None)


def write_mask_png(mask: NDArray[np.integer], path: str | Path, classes: ClassTable) -> Path:
    """Write a mask [H, W] as PNG of 8 bits with a palette, atomically: its numbers are labels, its look the colours.

    `PIL.Image.open` gives the labels; tools that expand palettes (OpenCV, ITK) give the colours. Raises as `as_uint8`.
    """
    image = Image.fromarray(as_uint8(mask, classes))
    image.putpalette(classes.palette())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", optimize=False, bits=8)
    return Path(path)


def write_nifti_mask(
    mask: NDArray[np.integer],
    path: str | Path,
    spacing_mm: tuple[float, float] | None,
    source: str | os.PathLike[str] | None = None,
    table: str | None = None,
) -> Path:
    """Write a mask [H, W] of labels 0 to 255 as NIfTI of 8 bits, atomically, gzipped where the name ends in .nii.gz.

    If the image's own file, the source, is NIfTI, the mask gets its shape, orientation and position. Otherwise it lies
    as ITK and 3D Slicer place a picture: x to the left, y to the back, with its spacing in mm (down the rows, along the
    columns); without one a pixel has length 1 of no unit. The file says whose labels these are, see `written_table`.

    Raises:
        ValueError: labels beyond 8 bits, a mask whose size is not the source's, or another suffix.
    """
    from nibabel.nifti1 import Nifti1Image

    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: found this name for a NIfTI mask; expected it to end in .nii or .nii.gz.")
    labels, header = as_uint8(mask), None if source is None else _nifti_header(source)
    if header is not None:
        image = Nifti1Image(undo_display(labels, header), None)
        for name in _GEOMETRY:
            image.header[name] = header[name]
    else:
        row, column = spacing_mm or (1.0, 1.0)
        image = Nifti1Image(labels.T[..., None], np.diag([-column, -row, 1.0, 1.0]))
        image.header["xyzt_units"] = 0 if spacing_mm is None else _SPATIAL_UNIT_MM
    image.header["descrip"] = b"" if table is None else (_LABELS_OF + table).encode()
    content = image.to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def stored_mask(
    mask: NDArray[np.integer], source: str | os.PathLike[str]
) -> tuple[NDArray[np.uint8], NDArray[np.float64] | None]:
    """A mask [H, W] in the array order of its image's file, as MONAI's and ITK's writers take it: first axis across.

    Returns:
        uint8 [W, H] and None; where the image is a NIfTI, its array of three axes and an affine (4 × 4, RAS) with
        which `read_mask` gives the same labels [H, W] again. That is the image's own where its header has one.

    Raises:
        ValueError: labels beyond 8 bits, or a mask whose size is not the source's.
    """
    labels, header = as_uint8(mask), _nifti_header(source)
    if header is None:
        return np.ascontiguousarray(labels.T), None
    stored = undo_display(labels, header)
    affine = header.get_best_affine()
    if linear_part(header) is None and not np.array_equal(affine[:3, :3], np.eye(3)):
        # It is displayed as it is stored, which is what an affine with negative steps in the plane means.
        steps = [zoom if np.isfinite(zoom) and zoom > 0 else 1.0 for zoom in map(float, header.get_zooms()[:3])]
        steps += [1.0] * (3 - len(steps))
        affine = np.diag([-step if axis in plane_axes(header) else step for axis, step in enumerate(steps)] + [1.0])
    return stored.reshape((*stored.shape, 1)[:3]), np.asarray(affine, dtype=np.float64)


def _nifti_header(path: str | os.PathLike[str]) -> Any:
    """The header of a NIfTI file; None of others."""
    return read_header(Path(path)) if detect_format(Path(path)).startswith("nifti") else None


class ToStoredOrderd:
    """Labels [H, W] under each key become a MetaTensor as `stored_mask` of the image's file, under `image_path`.

    Last in postprocessing, for the writer of MONAI Label.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)

    def __call__(self, data: dict) -> dict:
        """Turn every key of one item."""
        from monai.data import MetaTensor

        item = dict(data)
        for key in self.keys:
            labels = item[key].as_subclass(torch.Tensor).cpu().numpy()
            stored, affine = stored_mask(labels, item["image_path"])
            item[key] = MetaTensor(torch.from_numpy(stored), None if affine is None else torch.from_numpy(affine))
        return item


def as_uint8(mask: NDArray[np.integer], classes: ClassTable | None = None) -> NDArray[np.uint8]:
    """A mask [H, W] of integers as 8 bits; raises `ValueError` for anything else, and for labels beyond the table's."""
    if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "iu":
        raise ValueError(f"mask: found {mask.dtype} {mask.shape}; expected integers [H, W].")
    if mask.min() < 0 or mask.max() > 255:
        raise ValueError(f"mask: found labels from {mask.min()} to {mask.max()}; expected 0 to 255.")
    if classes is not None:
        classes.map_mask(mask, None)
    return np.ascontiguousarray(mask, dtype=np.uint8)


def _read_png(path: Path) -> NDArray[np.int64]:
    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        if image.format != "PNG":
            hint = "JPEG changes labels; draw or export it again." if image.format == "JPEG" else "Save it as PNG."
            raise RefusalError(f"a {image.format} file", _EXPECTED, hint)
        check_size(*image.size)
        values = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
        orientation = orientation_of(image)
    if values.ndim == 3:
        if not (values[..., :1] == values[..., :3]).all():
            raise RefusalError("a PNG in colour", _EXPECTED, "Save the labels themselves, not their colours.")
        values = values[..., 0]
    return turned(values, orientation).astype(np.int64)


def _read_nifti(path: Path) -> NDArray[np.int64]:
    header, plane = read_plane(path)
    whole = np.rint(plane)
    slope = header.get_slope_inter()[0]
    is_scaled = slope is not None and header.get_data_dtype().kind in "iu"
    within = min(max(_WHOLE_WITHIN, 0.51 * abs(slope)), _MOST_WITHIN) if is_scaled else _WHOLE_WITHIN
    # Written so that NaN, too, counts as no whole number.
    if not ((whole >= 0) & (abs(plane - whole) <= within)).all():
        raise RefusalError("numbers that are negative or not whole", _EXPECTED, "Give the mask, not the probabilities.")
    return display(whole, header).astype(np.int64)
