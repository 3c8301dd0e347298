"""What the reader returns and the one error it raises."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UserError

EXPECTED_IMAGE = "one radiograph as DICOM, PNG, JPEG, TIFF or NIfTI"


class UnreadableRadiographError(UserError, ValueError):
    """A file is no readable radiograph; the message says what was found, what was expected and what to do.

    It survives pickling and a `DataLoader` worker, which rebuilds an exception from its message alone.

    Attributes:
        path: the file, as it was asked for.
        found: what the file turned out to be.
        expected: what the reader needed instead.
        hint: what the user can do, one sentence.
    """

    def __init__(self, path: str | os.PathLike[str], found: str = "", expected: str = "", hint: str = "") -> None:
        self.path, self.found, self.expected, self.hint = path, found, expected, hint
        # With the path alone it is a message that a DataLoader passes on: repeat it as it is.
        super().__init__(f"{path}: found {found}; expected {expected}. {hint}" if found else str(path))

    def __reduce__(self) -> tuple[type[UnreadableRadiographError], tuple[object, ...]]:
        return type(self), (self.path, self.found, self.expected, self.hint)


class RefusalError(Exception):
    """Raised inside the reader, where the path is not known; `read_radiograph` turns it into the public error."""

    def __init__(self, found: str, expected: str, hint: str) -> None:
        self.found, self.expected, self.hint = found, expected, hint
        super().__init__(f"found {found}; expected {expected}. {hint}")


@dataclass(frozen=True)
class Radiograph:
    """One radiograph, whatever the file format it came from.

    Attributes:
        pixels: float32 [1, height, width] in [0, 1], finite, contiguous and not constant; air dark, bone bright
            as far as the header (DICOM) tells the polarity.
        spacing_mm: millimetres between pixel centres, (down the rows, along the columns), or None if unknown.
        path: the file that was read.
        modality: DICOM Modality such as "CR", "DX", "IO" or "PX"; "" where the format does not say.
    """

    pixels: Tensor
    spacing_mm: tuple[float, float] | None
    path: Path
    modality: str
