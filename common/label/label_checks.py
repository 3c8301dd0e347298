"""Whether an upload is what it has to be, before anything of it reaches the datastore."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..io import Radiograph, UnreadableRadiographError, read_radiograph
from ..io.mask_files import MaskError, read_mask
from ..io.segmentation_classes import BACKGROUND, ClassTable, UnknownClassError
from .readable import readable_file

_ID = re.compile(r"[^/\\\x00-\x1f]{1,200}")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RefusedUploadError(UserError, ValueError):
    """An upload would leave the datastore with something that cannot be read, or outside of its folder."""


def check_id(image_id: str) -> None:
    """Refuse an id that is no plain file name.

    Raises:
        RefusedUploadError: a path, a hidden file or an empty id.
    """
    if not _ID.fullmatch(image_id) or image_id.startswith("."):
        raise RefusedUploadError(
            f"image id: found {image_id[:80]!r}; expected a file name without folders that does not start with a dot."
        )


def check_tag(tag: str) -> None:
    """Refuse a label tag that is no plain word: it becomes a folder.

    Raises:
        RefusedUploadError: anything but letters, digits, _ and -.
    """
    if not _TAG.fullmatch(tag):
        raise RefusedUploadError(f"label tag: found {tag[:80]!r}; expected letters, digits, _ and -, such as final.")


@contextmanager
def named_in_errors(name: str) -> Iterator[None]:
    """Within the block, a file that cannot be read is called by this name, not by a path that says nothing to a client.

    Raises:
        RefusedUploadError: in place of UnreadableRadiographError and MaskError.
    """
    try:
        yield
    except (UnreadableRadiographError, MaskError) as error:
        _, separator, rest = str(error).partition(": ")
        raise RefusedUploadError(f"{name}: {rest}" if separator else f"{name}: {error}") from error


def check_image(path: str | Path, name: str) -> Radiograph:
    """Read an image as it will be read later; `name` stands for the file in messages.

    Raises:
        RefusedUploadError: it is no single readable radiograph.
    """
    with named_in_errors(name), readable_file(path) as file:
        return read_radiograph(file)


def check_label(
    path: str | Path,
    name: str,
    size: tuple[int, int],
    classes: ClassTable,
    segments: Sequence[Mapping[str, Any]] | None = None,
) -> NDArray[np.uint8]:
    """Read a label as it will be read in training.

    Args:
        path: PNG, NIfTI or NRRD.
        name: for messages.
        size: rows, columns that it has to have.
        classes: the labels it may hold.
        segments: `label_info` of 3D Slicer, see `slicer_labels`; None where the values are the labels.

    Returns:
        Labels [H, W] of the class table.

    Raises:
        RefusedUploadError: no mask, a volume, another size, or a value without a class.
    """
    with named_in_errors(name), readable_file(path) as file:
        values = read_mask(file)
    if values.shape != size:
        raise RefusedUploadError(
            f"{name}: found a mask of {values.shape[0]} × {values.shape[1]} pixels; expected {size[0]} × {size[1]}, "
            "the rows × columns of its image. Check that mask and image belong together and are not turned."
        )
    try:
        labels = classes.map_mask(values, None) if not segments else slicer_labels(values, segments, classes)
    except UnknownClassError as error:
        raise RefusedUploadError(f"{name}: {error}") from error
    return labels.astype(np.uint8)


def slicer_labels(
    values: NDArray[np.int64], segments: Sequence[Mapping[str, Any]], classes: ClassTable
) -> NDArray[np.int64]:
    """Labels from a mask whose values number segments, as 3D Slicer exports them: names decide, not numbers.

    Slicer numbers the segments that it saves from 1 in their order, so once one is deleted, 4 may be the decay; `idx`
    is the segment's place before. A client that sends labels with their own values is told by values beyond that.

    Args:
        values: [H, W].
        segments: in order, each with its class as "name" and maybe "idx".
        classes: the labels.

    Raises:
        UnknownClassError: a value in use has no segment, or its segment's name is no class.
    """
    found = [value for value in np.unique(values).tolist() if value]
    names = {place: str(entry.get("name", "")) for place, entry in enumerate(segments, start=1)}
    if not set(found) <= names.keys():
        names = {
            int(entry["idx"]): str(entry.get("name", "")) for entry in segments if str(entry.get("idx", "")).isdigit()
        }
    lookup = np.zeros(max(found, default=0) + 1, np.int64)
    for value in found:
        if value not in names:
            raise UnknownClassError(
                f"found mask value {value}; expected one of {sorted(names)}, the segments that were sent with it."
            )
        name = names[value].strip().lower()
        if name == BACKGROUND or name not in classes.names:
            raise UnknownClassError(
                f"found a segment {names[value]!r}; expected {', '.join(classes.names[1:])}. Rename or remove it."
            )
        lookup[value] = classes.label_of(name)
    return lookup[values]
