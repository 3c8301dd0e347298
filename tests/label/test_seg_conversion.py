import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from fastapi import HTTPException
from PIL import Image

from common.errors import UserError
from common.io import read_radiograph
from common.io.dicom_seg import write_dicom_seg
from common.io.segmentation_classes import CARIES, GROUPED
from common.io.synthetic_dicom import write_synthetic_dicom
from common.label.seg_conversion import image_to_nifti, read_dicom_seg, seg_file, use_own_conversion


@pytest.fixture
def series(tmp_path):
    """A folder with one DICOM radiograph, without frame of reference, 20 × 30."""
    (tmp_path / "series").mkdir()
    pixels = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0))
    options = {"identity": "a", "model": "m", "description": "d", "pixel_spacing": (0.2, 0.1)}
    write_synthetic_dicom(pixels, tmp_path / "series" / "one.dcm", **options)
    return tmp_path / "series"


@pytest.fixture
def mask():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, 3:20], mask[4, 5:15], mask[15:, 25:] = 1, 2, 5
    return mask


def test_a_mask_comes_back_from_a_seg(series, mask, tmp_path):
    write_dicom_seg(mask, tmp_path / "seg.dcm", GROUPED, series / "one.dcm", "model 1")
    found, referenced = read_dicom_seg(tmp_path / "seg.dcm", GROUPED)
    assert np.array_equal(found, mask) and referenced


def test_other_files_and_other_classes_are_refused(series, mask, tmp_path):
    write_dicom_seg(mask, tmp_path / "seg.dcm", GROUPED, series / "one.dcm", "model 1")
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(UserError, match="found Secondary Capture"):
        read_dicom_seg(series / "one.dcm", GROUPED)
    with pytest.raises(UserError, match="found no readable DICOM SEG"):
        read_dicom_seg(tmp_path / "text.dcm", GROUPED)
    with pytest.raises(UserError, match="found 'root'"):
        read_dicom_seg(tmp_path / "seg.dcm", CARIES)


def test_a_radiograph_as_nifti_is_read_as_the_dicom_file_is(series, tmp_path):
    own = read_radiograph(series / "one.dcm")
    converted = read_radiograph(image_to_nifti(series, tmp_path / "image.nii.gz"))
    assert torch.equal(converted.pixels, own.pixels)
    np.testing.assert_allclose(converted.spacing_mm, (0.2, 0.1), rtol=1e-6)
    assert nibabel.load(tmp_path / "image.nii.gz").shape == (30, 20, 1)


def test_inference_with_dicom_seg_converts_by_this(series, mask, tmp_path, monkeypatch):
    import monailabel.endpoints.infer as infer

    monkeypatch.setattr(infer, "nifti_to_dicom_seg", None)  # so that it is put back afterwards
    use_own_conversion(GROUPED, "model 1")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask[None]), str(tmp_path / "label.nrrd"))
    drawn = infer.nifti_to_dicom_seg(str(series), str(tmp_path / "label.nrrd"), [{"name": "other"}], use_itk=True)
    assert np.array_equal(read_dicom_seg(drawn, GROUPED)[0], mask)
    with pytest.raises(HTTPException, match="found no such file"):
        infer.nifti_to_dicom_seg(str(series), str(series / "one.dcm").replace("one", "none"), None)


def test_an_annotation_says_that_somebody_looked_at_it_and_is_a_new_one_each_time(series, mask, tmp_path):
    drawn = [write_dicom_seg(mask, tmp_path / f"{n}.dcm", GROUPED, series / "one.dcm", "model 1") for n in range(2)]
    submitted = [
        write_dicom_seg(mask, tmp_path / f"{n}.dcm", GROUPED, series / "one.dcm", "model 1", is_annotation=True)
        for n in (2, 3)
    ]
    one, other = (pydicom.dcmread(path) for path in drawn)
    assert one.SOPInstanceUID == other.SOPInstanceUID
    assert {segment.SegmentAlgorithmType for segment in one.SegmentSequence} == {"AUTOMATIC"}
    one, other = (pydicom.dcmread(path) for path in submitted)
    assert one.SOPInstanceUID != other.SOPInstanceUID and one.SeriesInstanceUID != other.SeriesInstanceUID
    assert {segment.SegmentAlgorithmType for segment in one.SegmentSequence} == {"SEMIAUTOMATIC"}


def test_a_label_of_another_size_becomes_no_seg(series, tmp_path):
    Image.fromarray(np.ones((30, 20), np.uint8)).save(tmp_path / "label.png")
    with pytest.raises(UserError, match="found a mask of 30 × 20 pixels; expected 20 × 30"):
        seg_file(series, tmp_path / "label.png", GROUPED, "model 1")
