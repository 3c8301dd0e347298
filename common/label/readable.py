"""What MONAI Label's clients send beyond `read_radiograph`'s formats: NRRD of 3D Slicer, a folder of one DICOM file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..io import UnreadableRadiographError

NRRD_MAGIC = b"NRRD"


def is_nrrd(path: str | Path) -> bool:
    """Whether a file's content is NRRD."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(NRRD_MAGIC)) == NRRD_MAGIC


@contextmanager
def readable_file(path: str | Path) -> Iterator[Path]:
    """Give a file that the readers of radiographs and masks know, for as long as the block lasts.

    NRRD becomes NIfTI with the same geometry, a folder of one file that file; anything else stays what it is.

    Raises:
        UnreadableRadiographError: a damaged NRRD, or a folder of several files (a volume).
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file()]
        if len(files) != 1:
            raise UnreadableRadiographError(
                path, f"a folder of {len(files)} files", "one radiograph", "CT and MR volumes are no radiographs."
            )
        path = files[0]
    if not is_nrrd(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "converted.nii"
        _convert(path, converted)
        yield converted


def _convert(source: Path, target: Path) -> None:
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(source), imageIO="NrrdImageIO")
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise UnreadableRadiographError(
                source, "an NRRD image in colour", "one grey channel", "Save one grey channel."
            )
        SimpleITK.WriteImage(image, str(target))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise UnreadableRadiographError(
            source, f"a damaged NRRD file ({reason})", "one radiograph or mask as NRRD", "Export it again."
        ) from error
