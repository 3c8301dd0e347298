"""What files of each format say about loss and burned-in text."""

import numpy as np
import pydicom
import pytest
from conftest import REPOSITORY
from PIL import Image

from common.io.source_history import LossyCompression, SourceHistory, source_history

RAMP = np.arange(64 * 48, dtype=np.uint32).reshape(64, 48) % 251


def saved(path, **options):
    Image.fromarray(RAMP.astype(np.uint8)).save(path, **options)
    return source_history(path)


def dicom(path, **elements):
    dataset = pydicom.dcmread(REPOSITORY / "bundles/cxr_autoencoder/samples/phantom_07_cr.dcm")
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return source_history(path)


@pytest.mark.parametrize(
    "options", [{"format": "PNG"}, {"format": "TIFF"}, {"format": "TIFF", "compression": "tiff_lzw"}]
)
def test_lossless_files_have_no_history(tmp_path, options):
    assert saved(tmp_path / "a", **options) == SourceHistory()


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "TIFF", "compression": "jpeg"}])
def test_jpeg_is_told_with_its_ratio(tmp_path, options):
    lossy = saved(tmp_path / "a", **options).lossy
    assert lossy.method == "ISO_10918_1"
    assert lossy.ratio == pytest.approx(max(1.0, RAMP.size / (tmp_path / "a").stat().st_size), abs=0.01)


def test_dicom_statements_are_taken_over(tmp_path):
    assert dicom(tmp_path / "a.dcm") == SourceHistory()
    stated = {"LossyImageCompression": "01", "LossyImageCompressionRatio": [4, 2.5]}
    found = dicom(tmp_path / "a.dcm", **stated, LossyImageCompressionMethod=["ISO_15444_1", "ISO_10918_1"])
    assert found.lossy == LossyCompression(10.0, "ISO_10918_1")
    assert dicom(tmp_path / "b.dcm", LossyImageCompression="01").lossy == LossyCompression(None, "")
    assert dicom(tmp_path / "a.dcm", BurnedInAnnotation="YES").burned_in
    assert not dicom(tmp_path / "b.dcm", BurnedInAnnotation="NO").burned_in


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("chest_cr_mono2_8bit_jpegbaseline_rsna", "ISO_10918_1"),
        ("hip_cr_mono2_j2k_lossy_RG2", "ISO_15444_1"),
        ("extremity_cr_mono1_rle_RG3", None),
        ("extremity_cr_mono1_jpegls_lossless_RG3", None),
    ],
)
def test_real_files_tell_their_compression(shared_data, name, method):
    lossy = source_history(shared_data / "dicom" / f"{name}.dcm").lossy
    assert (lossy and lossy.method) == method
    assert lossy is None or lossy.ratio >= 1
