import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from common.dicom_seg import write_dicom_seg
from common.errors import UserError
from common.label.seg_conversion import read_dicom_seg, seg_file, use_own_conversions
from common.mask_files import read_mask
from common.segmentation_classes import CARIES, GROUPED
from common.synthetic_dicom import write_synthetic_dicom


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


def test_the_datastore_converts_by_these(series, mask, tmp_path):
    import monailabel.datastore.dicom as dicom
    import monailabel.endpoints.infer as infer

    use_own_conversions(GROUPED, "model 1")
    image = nibabel.load(dicom.dicom_to_nifti(str(series)))
    assert image.shape == (30, 20, 1)
    np.testing.assert_allclose(image.header.get_zooms()[:2], (0.1, 0.2), rtol=1e-6)

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask[None]), str(tmp_path / "label.nrrd"))
    segmentation = infer.nifti_to_dicom_seg(str(series), str(tmp_path / "label.nrrd"), None, use_itk=True)
    (tmp_path / "seg").mkdir()
    shutil.move(segmentation, tmp_path / "seg")
    assert np.array_equal(read_mask(dicom.dicom_to_nifti(str(tmp_path / "seg"), is_seg=True)), mask)


def test_a_label_of_another_size_becomes_no_seg(series, tmp_path):
    Image.fromarray(np.ones((30, 20), np.uint8)).save(tmp_path / "label.png")
    with pytest.raises(UserError, match="found a mask of 30 × 20 pixels; expected 20 × 30"):
        seg_file(series, tmp_path / "label.png", GROUPED, "model 1")
