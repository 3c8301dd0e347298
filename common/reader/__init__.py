"""The one reader of radiographs: DICOM, PNG, JPEG, TIFF and NIfTI to [0, 1], or one clear error."""

from .formats import IMAGE_SUFFIXES, is_radiograph_file
from .read import read_radiograph
from .types import Radiograph, UnreadableRadiographError

__all__ = ["IMAGE_SUFFIXES", "Radiograph", "UnreadableRadiographError", "is_radiograph_file", "read_radiograph"]
