"""One radiograph in (DICOM, PNG, JPEG, TIFF, NIfTI to [0, 1]), one result out (PNG, class mask, DICOM), and sheets."""

from .read import IMAGE_SUFFIXES, is_radiograph_file, read_radiograph
from .types import Radiograph, UnreadableRadiographError

__all__ = ["IMAGE_SUFFIXES", "Radiograph", "UnreadableRadiographError", "is_radiograph_file", "read_radiograph"]
