"""Masks in files: numbers that are labels, so nothing may scale, interpolate or compress them.

Rows and columns are those that `read_radiograph` gives for an image of the same orientation.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..files import atomic_path
from .formats import detect_format

# The one owner of how a NIfTI array is turned for display; masks have to be turned as their images are.
from .nifti import _affine, _display, _plane_axes
from .scaling import check_size
from .types import RefusalError

_EXPECTED = "a mask as PNG of one channel or as NIfTI of one slice, its pixels whole numbers from 0"
_SPATIAL_UNIT_MM = 2


class MaskError(UserError, ValueError):
    """A file is no readable mask, or does not fit its image; the message names the file."""


def read_mask(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read the stored numbers of a mask; the format is told by the content, not by the name.

    Args:
        path: a PNG, grey, palette (its indices count) or RGB with equal channels; or a NIfTI of one slice.

    Returns:
        int64 [H, W], 0 or more.

    Raises:
        MaskError: the file is missing, damaged, lossy, or holds something else.
    """
    path = Path(path)
    try:
        kind = detect_format(path)
        if kind == "raster":
            return _read_png(path)
        if kind == "dicom":
            raise RefusalError("a DICOM file", _EXPECTED, "Convert the segmentation to PNG or NIfTI.")
        return _read_nifti(path)
    except RefusalError as error:
        raise MaskError(f"{path}: found {error.found}; expected {error.expected}. {error.hint}") from error
    except Exception as error:  # decoders raise anything for bytes that they were not made for
        reason = " ".join(str(error).split())[:200]
        raise MaskError(
            f"{path}: found a damaged or unsupported file ({type(error).__name__}: {reason}); expected {_EXPECTED}. "
            "Copy or export it again."
        ) from error


def write_nifti_mask(
    mask: NDArray[np.integer],
    path: str | Path,
    spacing_mm: tuple[float, float] | None,
    source: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a mask as NIfTI of 8 bits, atomically, gzipped where the name ends so.

    If the image came from a NIfTI file, the mask gets its shape, orientation and position. Otherwise it lies as ITK
    and 3D Slicer place a picture: x to the left, y to the back. Without a spacing a pixel has length 1 of no unit.

    Args:
        mask: labels [H, W], 0 to 255.
        path: ends in .nii or .nii.gz.
        spacing_mm: of the image, (down the rows, along the columns), or None.
        source: the image's own file.

    Returns:
        The path.

    Raises:
        ValueError: labels beyond 8 bits, a mask whose size is not the source's, or another suffix.
    """
    from nibabel.nifti1 import Nifti1Image

    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: found this name for a NIfTI mask; expected it to end in .nii or .nii.gz.")
    labels = as_uint8(mask)
    if source is not None and detect_format(Path(source)) in ("nifti", "nifti.gz"):
        header = _read_header(Path(source))
        image = Nifti1Image(_undo_display(labels, header), None)
        _copy_geometry(header, image.header)
    else:
        row, column = spacing_mm or (1.0, 1.0)
        image = Nifti1Image(labels.T[..., None], np.diag([-column, -row, 1.0, 1.0]))
        image.header["xyzt_units"] = 0 if spacing_mm is None else _SPATIAL_UNIT_MM
    content = image.to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def stored_mask(
    mask: NDArray[np.integer], source: str | os.PathLike[str]
) -> tuple[NDArray[np.uint8], NDArray[np.float64] | None]:
    """A mask in the array order of its image's own file, which MONAI's and ITK's writers take: first axis across.

    Args:
        mask: labels [H, W], 0 to 255.
        source: the image's own file.

    Returns:
        uint8 [W, H] and None; where the image is a NIfTI, its array of three axes and an affine (4 × 4, RAS) with
        which `read_mask` gives the same labels [H, W] again. That is the image's own where its header has one.

    Raises:
        ValueError: labels beyond 8 bits, or a mask whose size is not the source's.
    """
    labels = as_uint8(mask)
    if detect_format(Path(source)) not in ("nifti", "nifti.gz"):
        return np.ascontiguousarray(labels.T), None
    header = _read_header(Path(source))
    stored = _undo_display(labels, header)
    affine = header.get_best_affine()
    if _affine(header) is None and not np.array_equal(affine[:3, :3], np.eye(3)):
        # It is displayed as it is stored, which is what an affine with negative steps in the plane means.
        steps = [zoom if np.isfinite(zoom) and zoom > 0 else 1.0 for zoom in map(float, header.get_zooms()[:3])]
        steps += [1.0] * (3 - len(steps))
        affine = np.diag([-step if axis in _plane_axes(header) else step for axis, step in enumerate(steps)] + [1.0])
    return stored.reshape((*stored.shape, 1)[:3]), np.asarray(affine, dtype=np.float64)


def as_uint8(mask: NDArray[np.integer]) -> NDArray[np.uint8]:
    """A mask [H, W] as 8 bits.

    Raises:
        ValueError: another shape, no integers, or labels beyond 0 to 255.
    """
    if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "iu":
        raise ValueError(f"mask: found {mask.dtype} {mask.shape}; expected integers [H, W].")
    if mask.min() < 0 or mask.max() > 255:
        raise ValueError(f"mask: found labels from {mask.min()} to {mask.max()}; expected 0 to 255.")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def _read_png(path: Path) -> NDArray[np.int64]:
    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        if image.format != "PNG":
            hint = (
                "JPEG changes labels; draw or export the mask again." if image.format == "JPEG" else "Save it as PNG."
            )
            raise RefusalError(f"a {image.format} file", _EXPECTED, hint)
        check_size(*image.size)
        values = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
    if values.ndim == 3:
        if not (values[..., :1] == values[..., :3]).all():
            raise RefusalError("a PNG in colour", _EXPECTED, "Save the labels themselves, not their colours.")
        values = values[..., 0]
    return values.astype(np.int64)


def _read_nifti(path: Path) -> NDArray[np.int64]:
    header = _read_header(path)
    with _open(path) as file:
        data = np.asarray(header.data_from_fileobj(file))
    axes = _plane_axes(header)
    plane = data.reshape([data.shape[axis] for axis in axes])
    # Written so that NaN, too, counts as no whole number.
    if not ((plane >= 0) & (plane == np.round(plane))).all():
        raise RefusalError("numbers that are negative or not whole", _EXPECTED, "Give the mask, not the probabilities.")
    shown, _ = _display(plane, _affine(header), axes, header)
    return np.asarray(shown).astype(np.int64)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if is_gzip else open
    return opener(path, "rb")


def _read_header(path: Path) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    with _open(path) as file:
        start = file.read(8)
        file.seek(0)
        # check=False: nibabel would log every oddity of the header to the console.
        return (Nifti2Header if start[4:8] == b"n+2\x00" else Nifti1Header).from_fileobj(file, check=False)


def _undo_display(mask: NDArray[np.uint8], header: Any) -> NDArray[np.uint8]:
    """Turn a mask [H, W] into the array of the image's own file: numbered pixels tell where each was taken from."""
    axes = _plane_axes(header)
    shape = tuple(int(length) for length in header.get_data_shape())
    plane_shape = (shape[axes[0]], shape[axes[1]])
    numbers: Any = np.arange(plane_shape[0] * plane_shape[1]).reshape(plane_shape)
    shown, _ = _display(numbers, _affine(header), axes, header)
    if shown.shape != mask.shape:
        raise ValueError(f"mask: found {mask.shape}; expected {shown.shape}, the size of its image.")
    plane = np.empty(mask.size, np.uint8)
    plane[np.asarray(shown).ravel()] = mask.ravel()
    return plane.reshape(shape)


def _copy_geometry(source: Any, header: Any) -> None:
    """Both affines with their codes, zooms and unit, exactly as the source has them."""
    for name in ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"):
        header[name] = source[name]
    for name in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        header[name] = source[name]
