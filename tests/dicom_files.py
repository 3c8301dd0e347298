"""DICOM files for tests: data sets of given pixels, written in any coding, and read or refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from common.io import Radiograph, UnreadableRadiographError, read_radiograph

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG, JPEG_12, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70, 80, 90))
PYDICOM_3 = int(pydicom.__version__.split(".")[0]) >= 3


def make(values: np.ndarray, photometric: str = "MONOCHROME2", stored: int = 0, **elements: object) -> Dataset:
    """Return a data set of these pixels, [rows, columns] or [rows, columns, 3]."""
    width = values.dtype.itemsize * 8
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    dataset.Modality, dataset.PhotometricInterpretation = "DX", photometric
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored = width, stored or width
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    dataset["PixelData"].VR = "OW" if width > 8 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write(dataset: Dataset, path: Path, syntax: str = EXPLICIT) -> Path:
    """Write with either pydicom."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    encoding = {"is_implicit_VR": syntax == IMPLICIT, "is_little_endian": syntax != BIG}
    whole = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\0" * 128, **encoding)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if PYDICOM_3:
            whole.save_as(path, enforce_file_format=True)
        else:
            whole.save_as(path, write_like_original=False)
    return path


def read(path: Path) -> Radiograph:
    """Read and check what holds for every radiograph."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        radiograph = read_radiograph(path)
    pixels = radiograph.pixels
    assert pixels.isfinite().all() and 0 <= pixels.min() < pixels.max() <= 1 and pixels.ndim == 3
    assert pixels.is_contiguous() and pixels.dtype == torch.float32 and radiograph.path == path
    return radiograph


def pixels(dataset: Dataset, tmp_path: Path, syntax: str = EXPLICIT) -> np.ndarray:
    return read(write(dataset, tmp_path / "a.dcm", syntax)).pixels[0].numpy()


def refused(path: Path, *found: str) -> UnreadableRadiographError:
    """The one error, which names the file and what it was found to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableRadiographError) as caught:
            read_radiograph(path)
    error = caught.value
    assert type(error) is UnreadableRadiographError and error.path == path and error.hint.endswith(".")
    assert str(error) == f"{path}: found {error.found}; expected {error.expected}. {error.hint}"
    assert all(word in error.found for word in found), error.found
    return error


def assert_of_nobody_and_well_formed(dataset: Dataset, *, persons: bool = True) -> None:
    """No dates, nothing private, and every text keeps to the length of its type; without persons, no names either."""
    most = {"LO": 64, "SH": 16, "CS": 16, "ST": 1024, "LT": 10240, "UI": 64, "PN": 64, "DS": 16, "IS": 12}
    for element in dataset.iterall():
        assert not element.tag.is_private and (element.VR not in ("DA", "TM", "DT", "AS") or not element.value), element
        assert persons or element.VR != "PN" or str(element.value) in ("", "SYNTHETIC^NOT A PATIENT"), element
        values = element.value if element.VM > 1 else [element.value]
        assert all(len(str(value)) <= most.get(element.VR, 2**31) for value in values), element


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


def ramp(bits: int, signed: bool) -> np.ndarray:
    """Return 20 × 30 values over all of the range, in no order that a wrong layout would survive."""
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.linspace(low, low + 2**bits - 1, 600).astype(np.int64)
    dtype = ("i" if signed else "u") + ("1" if bits == 8 else "2")
    return np.random.default_rng(0).permutation(values).reshape(20, 30).astype(dtype)


def replace_bytes(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def encoded(values: np.ndarray, syntax: str, bits: int) -> bytes:
    """One frame; JPEG baseline by Pillow, so that what it says of colours is the usual."""
    if syntax == JPEG:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "JPEG", quality=100)
        return buffer.getvalue()
    if syntax in (JPEG_12, JPEG_LOSSLESS):
        level = 100 if syntax == JPEG_12 else None
        return imagecodecs.jpeg8_encode(values, level, lossless=syntax == JPEG_LOSSLESS, bitspersample=bits)
    if syntax == JPEG_LS:
        return imagecodecs.jpegls_encode(values)
    if syntax == JPEG_2000:
        return imagecodecs.jpeg2k_encode(values, 0, codecformat="J2K", reversible=True)
    samples = np.atleast_3d(values)
    planes = samples.astype(samples.dtype.newbyteorder(">")).view(np.uint8).reshape(*samples.shape, -1)
    segments = [
        imagecodecs.packbits_encode(plane.tobytes())
        for plane in np.moveaxis(planes, (2, 3), (0, 1)).reshape(-1, samples.shape[0] * samples.shape[1])
    ]
    offsets = 64 + np.cumsum([0, *map(len, segments)])[:-1]
    return np.array([len(segments), *offsets, *[0] * (15 - len(segments))], "<u4").tobytes() + b"".join(segments)


def compressed(values: np.ndarray, syntax: str, bits: int, photometric: str = "MONOCHROME2") -> Dataset:
    return framed(values, encoded(values, syntax, bits), bits, photometric)


def framed(
    values: np.ndarray, frame: bytes, bits: int, photometric: str = "MONOCHROME2", **elements: object
) -> Dataset:
    """A data set of such values whose pixel data are this frame."""
    dataset = make(values, photometric, bits, PixelData=encapsulate([frame + b"\0" * (len(frame) % 2)]), **elements)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset
