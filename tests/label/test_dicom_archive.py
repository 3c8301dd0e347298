"""SEGs of others, and archives that do not behave; those that do are in test_archive.py."""

import socket

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from label_server import free_port
from PIL import Image
from stand_in import StandIn, served

from common.errors import UserError
from common.io import read_radiograph
from common.io.dicom_seg import write_dicom_seg
from common.io.segmentation_classes import CARIES, GROUPED
from common.io.synthetic_dicom import write_synthetic_dicom
from common.label import services
from common.label.checked_archive import image_to_nifti, use_own_conversion
from common.label.dicom_archive import DicomArchive, archive_client, labels_of_seg
from common.label.services import ServiceError


def archive_at(port):
    return DicomArchive(archive_client(f"http://127.0.0.1:{port}"), {"Modality": "DX"}, GROUPED)


def test_an_archive_that_is_not_there_or_never_answers_is_given_up(monkeypatch):
    with pytest.raises(ServiceError, match="refused"):
        archive_at(free_port()).images()
    monkeypatch.setattr(services, "TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServiceError, match="timed out"):
            archive_at(silent.getsockname()[1]).labels()


class Replying(StandIn):
    """Answers any request with the server's `reply`: status, body, media type."""

    def do_GET(self):
        self.answer(*self.server.reply)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ((200, b"<html>a web page</html>", "text/html"), "JSONDecodeError"),
        ((200, [{"0020000E": "no element"}]), "Error"),
        ((401, b"log in", "text/plain"), "401"),
        ((503, b"busy", "text/plain"), "503"),
    ],
)
def test_what_is_no_archive_or_lets_nobody_in_is_said_so(reply, found):
    with served(Replying, reply=reply) as other, pytest.raises(ServiceError, match=found):
        archive_at(other.server_port).images()


def test_ids_that_are_no_uids_are_not_asked_for():
    archive = archive_at(free_port())
    for name in ("*", "..", "1..2", "tooth_0", "1.2.", "1" * 65, ""):
        assert archive.image(name) is None


@pytest.fixture
def source(tmp_path):
    """A DICOM radiograph, without frame of reference, 20 × 30, alone in its folder."""
    (tmp_path / "series").mkdir()
    pixels = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0))
    options = {"identity": "a", "model": "m", "description": "d", "pixel_spacing": (0.2, 0.1)}
    return write_synthetic_dicom(pixels, tmp_path / "series" / "one.dcm", **options)


@pytest.fixture
def mask():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, 3:20], mask[4, 5:15], mask[15:, 25:] = 1, 2, 5
    return mask


def test_a_mask_comes_back_from_a_seg_and_no_other_file_or_class(source, mask, tmp_path):
    seg = pydicom.dcmread(write_dicom_seg(mask, tmp_path / "seg.dcm", GROUPED, source, "model 1"))
    assert np.array_equal(labels_of_seg(seg, "seg", GROUPED), mask)
    with pytest.raises(UserError):
        labels_of_seg(seg, "seg", CARIES)
    with pytest.raises(UserError):
        labels_of_seg(pydicom.dcmread(source), "image", GROUPED)
    volume = pydicom.dcmread(tmp_path / "seg.dcm")
    for group in volume.PerFrameFunctionalGroupsSequence:
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    with pytest.raises(UserError):
        labels_of_seg(volume, "volume", GROUPED)
    del seg.PerFrameFunctionalGroupsSequence
    with pytest.raises(UserError):
        labels_of_seg(seg, "damaged", GROUPED)


def test_a_radiograph_as_nifti_is_read_as_the_dicom_file_is(source, tmp_path):
    own = read_radiograph(source)
    converted = read_radiograph(image_to_nifti(source, tmp_path / "image.nii.gz"))
    assert torch.equal(converted.pixels, own.pixels)
    np.testing.assert_allclose(converted.spacing_mm, (0.2, 0.1), rtol=1e-6)
    assert nibabel.load(tmp_path / "image.nii.gz").shape == (30, 20, 1)


def test_inference_with_dicom_seg_converts_by_this(source, mask, tmp_path, monkeypatch):
    import monailabel.endpoints.infer as infer

    monkeypatch.setattr(infer, "nifti_to_dicom_seg", None)  # so that it is put back afterwards
    use_own_conversion(GROUPED, "model 1")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask[None]), str(tmp_path / "label.nrrd"))
    Image.fromarray(np.ones((30, 20), np.uint8)).save(tmp_path / "turned.png")
    series = str(source.parent)
    drawn = infer.nifti_to_dicom_seg(series, str(tmp_path / "label.nrrd"), [{"name": "other"}], use_itk=True)
    assert np.array_equal(labels_of_seg(pydicom.dcmread(drawn), "", GROUPED), mask)
    for label in ("turned.png", "none.png"):
        with pytest.raises(UserError):
            infer.nifti_to_dicom_seg(series, str(tmp_path / label), None)


def test_an_annotation_says_that_somebody_looked_at_it_and_is_a_new_one_each_time(source, mask, tmp_path):
    def written(name, **options):
        return pydicom.dcmread(write_dicom_seg(mask, tmp_path / name, GROUPED, source, "model 1", **options))

    for algorithm, options in (("AUTOMATIC", {}), ("SEMIAUTOMATIC", {"is_annotation": True})):
        one, other = written("one.dcm", **options), written("other.dcm", **options)
        assert (one.SOPInstanceUID == other.SOPInstanceUID) == (algorithm == "AUTOMATIC")
        assert {segment.SegmentAlgorithmType for segment in one.SegmentSequence} == {algorithm}
