"""NIfTI-1 and NIfTI-2 files of one slice, plain or gzipped, images and masks alike.

Orientation. NIfTI stores data[i, j] with i along x, so the array is transposed to [H, W]. The affine is in RAS; a
radiograph is displayed with the patient's left at the right of the screen, and posterior or inferior at the bottom. So
an in-plane axis that runs towards negative R, A or S is kept, one that runs towards positive is flipped, and the axes
are swapped back where i runs along the later world axis: diag(-sx, -sy, 1, 1), which ITK writes for an image of
identity direction, displays as stored. An affine whose linear part is the identity, or a header with neither sform nor
qform, is what writers put where nothing is known: the stored order is kept, and an identity gives no spacing.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .scaling import Float32Array, check_size, to_unit_range
from .types import RefusalError, plausible_spacing


def read_nifti(path: Path) -> tuple[Float32Array, tuple[float, float] | None]:
    """Read a 2-D image, or a 3-D one of a single slice; whatever else it is raises.

    Returns:
        float32 [H, W] in [0, 1] by the rules of `scaling`, and the spacing in mm, (row, column), or None.
    """
    header, plane = read_plane(path)
    return display(to_unit_range(plane), header), _spacing(header)


def read_plane(path: Path) -> tuple[Any, NDArray]:
    """Read header and numbers [i, j] of the plane, as they are stored; raises as `read_nifti`."""
    with _open(path) as file:
        header = _read_header(file)
        shape = header.get_data_shape()
        i, j = plane_axes(header)
        # Writers that know no better leave 0 here, where the header itself is.
        header["vox_offset"] = max(int(header["vox_offset"]), header.single_vox_offset)
        num_bytes = int(shape[i]) * int(shape[j]) * header.get_data_dtype().itemsize
        check_size(int(shape[i]), int(shape[j]), int(header["vox_offset"]) + num_bytes)
        data = header.data_from_fileobj(file)
    return header, np.asarray(data).reshape(shape[i], shape[j])


def read_header(path: Path) -> Any:
    """Read the header of a file of one slice."""
    with _open(path) as file:
        return _read_header(file)


def plane_axes(header: Any) -> tuple[int, int]:
    """Return the two axes that are longer than one, after refusing what is no grey 2-D image."""
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    if dtype.kind not in "iuf":
        found = f"a NIfTI image of type {header.get_value_label('datatype')}"
        raise RefusalError(found, "grey values", "Save one grey channel as integers or floats.")
    axes = [axis for axis, length in enumerate(shape) if length != 1]
    if len(axes) != 2 or axes[1] > 2:
        raise RefusalError(
            f"a NIfTI image of shape {shape}",
            "a 2-D image or a single slice",
            "Extract one slice or channel; CT and MR volumes are no radiographs.",
        )
    return axes[0], axes[1]


def linear_part(header: Any) -> NDArray[np.float64] | None:
    """Return the 3 × 3 linear part of the affine in RAS, or None where the header knows none."""
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        return None
    linear = np.asarray(header.get_best_affine(), dtype=np.float64)[:3, :3]
    if not np.isfinite(linear).all() or abs(np.linalg.det(linear)) < 1e-12 or np.array_equal(linear, np.eye(3)):
        return None
    return linear


def display(plane: NDArray, header: Any) -> NDArray:
    """Turn [i, j] into [H, W] as displayed."""
    swapped, down, across = _turn(header)
    return np.ascontiguousarray((plane if swapped else plane.T)[::down, ::across])


def undo_display(shown: NDArray, header: Any) -> NDArray:
    """Turn [H, W] as displayed into the array of the file; ValueError where its size is not the header's."""
    swapped, down, across = _turn(header)
    shape = tuple(int(length) for length in header.get_data_shape())
    size = tuple(shape[axis] for axis in plane_axes(header)[:: 1 if swapped else -1])
    if shown.shape != size:
        raise ValueError(f"mask: found {shown.shape}; expected {size}, the size of its image.")
    plane = shown[::down, ::across]
    return np.ascontiguousarray(plane if swapped else plane.T).reshape(shape)


def _turn(header: Any) -> tuple[bool, int, int]:
    """Whether the axes are swapped, then the steps down the rows and along the columns, 1 or -1."""
    linear = linear_part(header)
    if linear is None:
        return False, 1, 1
    from nibabel.orientations import io_orientation

    affine = np.eye(4)
    affine[:3, :3] = linear
    worlds, signs = io_orientation(affine)[list(plane_axes(header))].T
    swapped = bool(worlds[0] > worlds[1])
    across, down = (int(-sign) for sign in (signs[::-1] if swapped else signs))
    return swapped, down, across


def _spacing(header: Any) -> tuple[float, float] | None:
    linear, axes = linear_part(header), plane_axes(header)
    sizes = [float(header.get_zooms()[a] if linear is None else np.linalg.norm(linear[:, a])) for a in axes]
    if linear is None and sizes == [1.0, 1.0]:
        return None
    # Bits 0-2 of xyzt_units are the space unit; header.get_xyzt_units() would raise for a bad time unit.
    scale = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)
    row, column = sizes if _turn(header)[0] else sizes[::-1]
    return plausible_spacing((row * scale, column * scale))


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if is_gzip else open
    return opener(path, "rb")


def _read_header(file: IO[bytes]) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    start = file.read(348)
    file.seek(0)
    if start[344:348] == b"ni1\x00" or start[4:8] == b"ni2\x00":
        raise RefusalError("a NIfTI header without its data", "one .nii file", "Convert the .hdr/.img pair to .nii.")
    # check=False: nibabel would log every oddity of the header to the console.
    return (Nifti2Header if start[4:8] == b"n+2\x00" else Nifti1Header).from_fileobj(file, check=False)
