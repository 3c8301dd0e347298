"""NIfTI-1 and NIfTI-2 images of one slice, plain or gzipped.

Orientation. NIfTI stores data[i, j] with i along x, so the array is transposed to [height, width]. The affine is
in RAS; a radiograph is displayed with the patient's left at the right of the screen, and posterior or inferior at
the bottom. So an in-plane axis that runs towards negative R, A or S is kept, one that runs towards positive is
flipped, and the axes are swapped back where i runs along the later world axis. diag(-sx, -sy, 1, 1), which ITK
writes for an image of identity direction, therefore displays as stored. An affine whose linear part is the
identity, or a header with neither sform nor qform, is what writers put where nothing is known: the stored order is
kept, and an identity gives no spacing.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scaling import Float32Array, check_size, to_unit_range
from .spacing import plausible_spacing
from .types import RefusalError


def read_nifti(path: Path, gzipped: bool) -> tuple[Float32Array, tuple[float, float] | None]:
    """Read a 2-D image, or a 3-D one of a single slice.

    Args:
        path: the file; its name plays no part.
        gzipped: whether the content is gzipped.

    Returns:
        float32 [height, width] in [0, 1] by the rules of `scaling`, and the spacing in mm, (row, column), or None.

    Raises:
        RefusalError: more than one slice, colour or complex numbers, or a header without data.
        Exception: whatever nibabel, gzip and zlib raise for a damaged file.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    opener: Any = gzip.open if gzipped else open
    with opener(path, "rb") as file:
        start = file.read(348)
        file.seek(0)
        if start[344:348] == b"ni1\x00" or start[4:8] == b"ni2\x00":
            raise RefusalError(
                "a NIfTI header without its data", "one .nii file", "Convert the .hdr/.img pair to .nii."
            )
        # check=False: nibabel would log every oddity of the header to the console.
        header = (Nifti2Header if start[4:8] == b"n+2\x00" else Nifti1Header).from_fileobj(file, check=False)
        axes = _plane_axes(header)
        data = header.data_from_fileobj(file)
    plane = np.asarray(data).reshape([data.shape[axis] for axis in axes])
    return _display(to_unit_range(plane), _affine(header), axes, header)


def _plane_axes(header: Any) -> tuple[int, int]:
    """Return the two axes that are longer than one, after refusing what is no grey 2-D image."""
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise RefusalError(
            f"a NIfTI image of type {header.get_value_label('datatype')}",
            "grey values",
            "Save one grey channel as integers or floats.",
        )
    axes = [axis for axis, length in enumerate(shape) if length != 1]
    if len(axes) != 2 or axes[1] > 2:
        raise RefusalError(
            f"a NIfTI image of shape {shape}",
            "a 2-D image or a single slice",
            "Extract one slice or channel; CT and MR volumes are no radiographs.",
        )
    check_size(shape[axes[0]], shape[axes[1]])
    return axes[0], axes[1]


def _affine(header: Any) -> NDArray[np.float64] | None:
    """Return the 3 × 3 linear part in RAS, or None where the header knows none."""
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        return None
    linear = np.asarray(header.get_best_affine(), dtype=np.float64)[:3, :3]
    if not np.isfinite(linear).all() or abs(np.linalg.det(linear)) < 1e-12 or np.array_equal(linear, np.eye(3)):
        return None
    return linear


def _display(
    unit: Float32Array, linear: NDArray[np.float64] | None, axes: tuple[int, int], header: Any
) -> tuple[Float32Array, tuple[float, float] | None]:
    """Turn [i, j] into [height, width] as displayed, with the spacing in that order."""
    if linear is None:
        zooms = [float(header.get_zooms()[axis]) for axis in axes]
        sizes: list[float] | None = None if zooms == [1.0, 1.0] else zooms
        across, down, swapped = 1, 1, False
    else:
        from nibabel.orientations import io_orientation

        sizes = [float(np.linalg.norm(linear[:, axis])) for axis in axes]
        affine = np.eye(4)
        affine[:3, :3] = linear
        worlds, signs = io_orientation(affine)[list(axes)].T
        swapped = bool(worlds[0] > worlds[1])
        across, down = (int(-sign) for sign in (signs[::-1] if swapped else signs))
    image = unit if swapped else unit.T
    image = np.ascontiguousarray(image[::down, ::across])
    if sizes is None:
        return image, None
    # Bits 0-2 of xyzt_units are the space unit; header.get_xyzt_units() would raise for a bad time unit.
    scale = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)
    row, column = sizes if swapped else sizes[::-1]
    return image, plausible_spacing((row * scale, column * scale))
