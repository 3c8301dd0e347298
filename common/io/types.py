"""What the reader returns, and how it refuses."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UserError

IN_MEMORY = Path("<array>")  # of a radiograph that came from no file
EXPECTED_IMAGE = "one radiograph as DICOM, PNG, JPEG, TIFF or NIfTI"
_LEAST_MM, _MOST_MM = 0.001, 10.0  # detectors and scanners have 0.01 to 0.5 mm; beyond, a spacing is a mistake


class UnreadableRadiographError(UserError, ValueError):
    """A file is no readable radiograph (or mask): what was found, what was expected, and as a hint what to do.

    It survives pickling and a `DataLoader` worker, which rebuilds an exception from its message alone.
    """

    def __init__(self, path: str | os.PathLike[str], found: str = "", expected: str = "", hint: str = "") -> None:
        self.path, self.found, self.expected, self.hint = path, found, expected, hint
        # With the path alone it is a message that a DataLoader passes on: repeat it as it is.
        super().__init__(f"{path}: found {found}; expected {expected}. {hint}" if found else str(path))

    def __reduce__(self) -> tuple[type[UnreadableRadiographError], tuple[object, ...]]:
        return type(self), (self.path, self.found, self.expected, self.hint)


class RefusalError(Exception):
    """Raised inside the readers, which do not know the path; `with_path` turns it into the public error."""

    def __init__(self, found: str, expected: str, hint: str = "Export the image again.") -> None:
        self.found, self.expected, self.hint = found, expected, hint
        super().__init__(f"found {found}; expected {expected}. {hint}")


def with_path(error: Exception, path: Path, expected: str = EXPECTED_IMAGE) -> UnreadableRadiographError:
    """The public error for whatever went wrong with a file: decoders raise anything for bytes not made for them."""
    if isinstance(error, RefusalError):
        return UnreadableRadiographError(path, error.found, error.expected, error.hint)
    if isinstance(error, OSError) and error.errno is not None:  # Pillow and gzip have none for damaged content
        found = f"a file that cannot be opened ({error.strerror})"
        return UnreadableRadiographError(path, found, "a readable file", "Check path and permissions.")
    found = f"a damaged or unsupported file ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    hint = "Copy or export the file again; if it opens elsewhere, save it from there as PNG."
    return UnreadableRadiographError(path, found, expected, hint)


@dataclass(frozen=True)
class Radiograph:
    """One radiograph, whatever the file format it came from.

    Pixels are float32 [1, H, W] in [0, 1], finite, contiguous and not constant; air dark, bone bright as far as the
    header (DICOM) tells the polarity.
    """

    pixels: Tensor
    spacing_mm: tuple[float, float] | None  # between pixel centres, (down the rows, along the columns), if known
    path: Path  # the file that was read
    modality: str  # DICOM's, such as "CR", "DX", "IO" or "PX"; "" where the format does not say


def plausible_spacing(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the spacing in mm, (row, column), if both values are finite and those of a radiograph, else None."""
    if len(values) != 2 or not all(math.isfinite(v) and _LEAST_MM <= v <= _MOST_MM for v in values):
        return None
    return float(values[0]), float(values[1])
