import sys

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image, ImageCms
from pydicom.dataelem import RawDataElement
from pydicom.uid import DigitalXRayImageStorageForPresentation

from common.errors import UserError
from common.io import read_radiograph
from common.io.dicom_seg import dicom_cielab, require_highdicom, write_dicom_seg
from common.io.mask_writer import write_segmentation
from common.io.segmentation_classes import ELEVEN, GROUPED
from common.io.synthetic_dicom import write_synthetic_dicom


@pytest.fixture
def mask():
    """Root, canal and decay in an image of odd size."""
    mask = np.zeros((23, 57), np.uint8)
    mask[2:9, 3:20], mask[4, 5:15], mask[20:, 50:] = 1, 2, 5
    return mask


@pytest.fixture
def source(tmp_path):
    """A DX without frame of reference and position, as projection radiographs are."""
    pixels = torch.linspace(0, 1, 23 * 57).reshape(1, 23, 57)
    path = write_synthetic_dicom(pixels, tmp_path / "dx.dcm", identity="a", model="m", description="d", bits=8)
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.Modality, dataset.ImagerPixelSpacing = "DX", ["0.1", "0.1"]
    dataset.save_as(path)
    return path


def test_without_highdicom_the_error_says_what_to_install(monkeypatch, mask, source, tmp_path):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    for call in (require_highdicom, lambda: write_dicom_seg(mask, tmp_path / "seg.dcm", GROUPED, source, "m")):
        with pytest.raises(UserError, match=r"found no usable highdicom.*pip install highdicom"):
            call()
    assert not (tmp_path / "seg.dcm").exists()


def test_colours_agree_with_littlecms():
    """Pillow's ICC engine converts sRGB to Lab at D50 in 8 bits; a and b come as two's complement."""
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    for entry in (*GROUPED.classes, *ELEVEN.classes):
        pixel = ImageCms.applyTransform(Image.new("RGB", (1, 1), entry.colour), to_lab)
        lightness, a, b = np.asarray(pixel).astype(np.uint8)[0, 0].tolist()
        expected = np.array([lightness, (a + 128) % 256, (b + 128) % 256]) * 257
        np.testing.assert_allclose(dicom_cielab(entry.colour), expected, atol=3 * 257)
    assert dicom_cielab((0, 0, 0)) == [0, 0x8080, 0x8080]


def test_a_projection_image_gets_its_segments(mask, source, tmp_path):
    pytest.importorskip("highdicom")
    told = GROUPED, source, "dental 0.1.0"
    path = write_dicom_seg(mask, tmp_path / "seg.dcm", *told)
    seg, image = pydicom.dcmread(path), pydicom.dcmread(source)
    assert (seg.Rows, seg.Columns) == mask.shape and seg.Modality == "SEG"
    assert (seg.PatientID, seg.StudyInstanceUID) == (image.PatientID, image.StudyInstanceUID)
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID
    assert [item.SegmentLabel for item in seg.SegmentSequence] == GROUPED.names[1:]
    assert list(seg.SegmentSequence[4].RecommendedDisplayCIELabValue) == dicom_cielab(GROUPED.classes[4].colour)
    assert seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
        image.SOPInstanceUID
    )
    frames = seg.pixel_array.reshape(-1, *mask.shape)
    assert len(frames) == 5 and not frames.any((1, 2)).all()  # OHIF needs a frame of every segment
    found = np.zeros_like(mask)
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        found[frame > 0] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    assert np.array_equal(found, mask)
    again = write_dicom_seg(mask, tmp_path / "again.dcm", *told)
    assert pydicom.dcmread(again).SOPInstanceUID == seg.SOPInstanceUID
    empty = pydicom.dcmread(write_dicom_seg(np.zeros_like(mask), tmp_path / "empty.dcm", *told))
    assert empty.SOPInstanceUID != seg.SOPInstanceUID and not empty.pixel_array.any()


def test_what_no_seg_can_refer_to_is_refused(mask, source, tmp_path):
    pytest.importorskip("highdicom")
    Image.fromarray(mask).save(tmp_path / "image.png")
    bare = pydicom.dcmread(source)
    del bare.StudyInstanceUID
    bare.save_as(tmp_path / "bare.dcm")
    for file, labels, found in [
        (tmp_path / "image.png", mask, "no DICOM image"),
        (source, mask.T, "23 × 57 pixels; expected 57 × 23"),
        (tmp_path / "bare.dcm", mask, "StudyInstanceUID"),
    ]:
        with pytest.raises(UserError, match=rf"{file.name}: found.*{found}"):
            write_dicom_seg(labels, tmp_path / "seg.dcm", GROUPED, file, "m")
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        *(("PatientBirthDate", "unknown"), ("PatientBirthDate", "19990231"), ("PatientSex", "male")),
        *(("StudyTime", "12:30 h"), ("StudyDate", "today"), ("PatientID", "")),
    ],
)
def test_of_a_source_only_the_uids_have_to_be_well_formed(mask, source, tmp_path, keyword, value):
    pytest.importorskip("highdicom")
    dataset = pydicom.dcmread(source)
    element = dataset.data_element(keyword)
    raw = value.encode() + b" " * (len(value) % 2)
    dataset._dict[element.tag] = RawDataElement(element.tag, element.VR, len(raw), raw, 0, False, True)
    dataset.save_as(source)
    seg = pydicom.dcmread(write_dicom_seg(mask, tmp_path / "seg.dcm", GROUPED, source, "m"))
    assert keyword in seg and not seg.get(keyword) and seg.StudyInstanceUID == dataset.StudyInstanceUID


def test_the_writer_adds_a_seg_to_dicom_images_only(mask, source, tmp_path):
    pytest.importorskip("highdicom")
    Image.fromarray(np.arange(23 * 57, dtype=np.uint8).reshape(23, 57)).save(tmp_path / "image.png")
    formats = {"overlay": False, "nifti": True, "dicom_seg": True}
    row, _ = (
        write_segmentation(read_radiograph(path), mask, tmp_path / "out" / name, GROUPED, "m", **formats)
        for path, name in ((source, "dx"), (tmp_path / "image.png", "png"))
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"dx_mask.png", "dx_mask.nii.gz", "dx_seg.dcm", "png_mask.png", "png_mask.nii.gz"}
    assert row["decay_mm2"] == pytest.approx(21 * 0.01)
