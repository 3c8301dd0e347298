"""The app on a real Orthanc, behind MONAI Label's own endpoints in this process."""

import gzip
import json
import re

import highdicom
import nibabel
import numpy as np
import pytest
import requests
import SimpleITK
from label_data import MODEL, SIZE, app_client, dice, infer, save_label, truth_folder, upload
from label_server import make_dx
from PIL import Image
from pydicom import dcmread
from pydicom.uid import CTImageStorage, generate_uid

from common.io.dicom_seg import write_dicom_seg
from common.io.mask_files import read_mask
from common.io.segmentation_classes import CARIES, GROUPED
from common.label.checked_archive import CheckedArchive
from common.label.dicom_archive import DicomArchive, archive_client


@pytest.fixture
def truth(orthanc, studies, tmp_path):
    """True labels as PNG by the id of the image, of eight phantoms that are in the archive."""
    (tmp_path / "dx").mkdir()
    truth = {}
    for image in sorted(studies.iterdir()):
        path = make_dx(image, tmp_path / "dx" / f"{image.stem}.dcm")
        truth[orthanc.store(path)] = truth_folder(studies) / image.name
    return truth


@pytest.fixture
def image(truth):
    """The id of one of them."""
    return next(iter(truth))


@pytest.fixture
def serve(orthanc, truth, tiny_bundle, tmp_path, monkeypatch):
    """Gives MONAI Label's server in this process, serving the archive, with a cache of this name."""
    from monailabel.config import settings

    def start(cache):
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / cache))
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"Modality": "DX"})
        conf = {"bundle_dir": tiny_bundle, "weights_dir": tmp_path / "weights"}
        return app_client(orthanc.url, tmp_path / "sessions", **conf)

    return start


@pytest.fixture
def client(serve):
    return serve("cache")


def next_image(client, strategy="first"):
    answer = client.post(f"/activelearning/{strategy}", json={})
    assert answer.status_code == 200, answer.text
    return answer.json().get("id")


def dx_of(tmp_path, image):
    """The DX file of an image."""
    return next(path for path in (tmp_path / "dx").iterdir() if dcmread(path).SeriesInstanceUID == image)


def as_mask(content):
    """Labels of a NIfTI's bytes."""
    return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)[..., 0].T


def label_of(client, image, tag="final"):
    answer = client.get("/datastore/label", params={"label": image, "tag": tag})
    assert answer.status_code == 200, answer.text
    return as_mask(answer.content)


def stored_labels(segmentation):
    """Labels of a SEG by highdicom, which reads it by other code than the app."""
    read = highdicom.seg.Segmentation.from_dataset(segmentation)
    source = read.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    pixels = read.get_pixels_by_source_instance([source], combine_segments=True, relabel=False)
    return pixels[0]


def test_only_radiographs_are_offered_and_each_only_until_it_has_a_label(client, orthanc, truth, image, tmp_path):
    other = dcmread(dx_of(tmp_path, image))
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = CTImageStorage
    other.Modality, other.SeriesInstanceUID, other.SOPInstanceUID = "CT", generate_uid(), generate_uid()
    other.save_as(tmp_path / "ct.dcm")
    pair = [dcmread(dx_of(tmp_path, image)) for _ in range(2)]
    series = generate_uid()
    for number, one in enumerate(pair):
        one.SeriesInstanceUID, one.SOPInstanceUID = series, generate_uid()
        one.save_as(tmp_path / f"pair_{number}.dcm")
    drawn = write_dicom_seg(read_mask(truth[image]), tmp_path / "seg.dcm", GROUPED, dx_of(tmp_path, image), "a model")
    orthanc.store(tmp_path / "ct.dcm")
    orthanc.store(tmp_path / "pair_0.dcm", tmp_path / "pair_1.dcm")
    orthanc.store(drawn)

    assert client.get("/info/").json()["datastore"] == {"total": 8, "completed": 0, "label_tags": {"final": 0}}
    assert "a series of 2 files" in infer(client, series, expect=400)
    offered = []
    for strategy in ("epistemic", "random", "first", "epistemic", "random", "first", "epistemic", "random"):
        offered.append(next_image(client, strategy))
        save_label(client, offered[-1], truth[offered[-1]])
    assert sorted(offered) == sorted(truth)
    assert next_image(client) is None
    assert client.get("/info/").json()["datastore"]["completed"] == 8


def test_masks_are_those_of_the_dicom_file_itself(client, image, tmp_path):
    mask = as_mask(infer(client, image)[0])
    assert mask.shape == SIZE and len(np.unique(mask)) > 1
    assert np.array_equal(mask, as_mask(infer(client, "", file=dx_of(tmp_path, image))[0]))
    (tmp_path / "mask.nrrd").write_bytes(infer(client, image, result_extension=".nrrd")[0])
    drawn = SimpleITK.ReadImage(str(tmp_path / "mask.nrrd"))
    np.testing.assert_allclose(drawn.GetSpacing()[:2], (0.1, 0.2), rtol=1e-6)
    assert np.array_equal(SimpleITK.GetArrayFromImage(drawn)[0], mask)


def test_a_label_is_a_seg_in_the_archive_and_comes_back_the_same(client, serve, orthanc, truth, image, tmp_path):
    mask = read_mask(truth[image])
    save_label(client, image, truth[image])
    (segmentation,) = orthanc.segmentations()
    source = dcmread(dx_of(tmp_path, image))
    assert (segmentation.Rows, segmentation.Columns) == SIZE
    assert segmentation.PatientID == source.PatientID and segmentation.StudyInstanceUID == source.StudyInstanceUID
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == image
    assert {item.SegmentAlgorithmType for item in segmentation.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert np.array_equal(stored_labels(segmentation), mask)
    assert np.array_equal(label_of(client, image), mask)
    info = client.get("/datastore/label/info", params={"label": image, "tag": "final"}).json()
    assert info["SOPInstanceUID"] == segmentation.SOPInstanceUID

    anew = serve("another cache")
    assert anew.get("/info/").json()["datastore"]["completed"] == 1
    assert np.array_equal(label_of(anew, image), mask)


def test_the_last_label_counts_whether_it_is_an_old_one_or_empty(client, orthanc, truth, image, tmp_path):
    mask = read_mask(truth[image]).astype(np.uint8)
    other, empty = np.where(mask == 5, 2, mask).astype(np.uint8), np.zeros_like(mask)
    for number, (labels, stored) in enumerate([(mask, 1), (mask, 1), (other, 2), (mask, 3), (empty, 4), (empty, 4)]):
        Image.fromarray(labels).save(tmp_path / "label.png")
        save_label(client, image, tmp_path / "label.png")
        assert len(orthanc.segmentations()) == stored, number
        assert np.array_equal(label_of(client, image), labels), number


def test_bad_labels_are_refused_and_change_nothing(client, orthanc, truth, image, tmp_path):
    save_label(client, image, truth[image])
    infer(client, image)
    index = next((tmp_path / "cache").glob("*/datastore_v2.json"))
    before = orthanc.instances(), index.read_bytes()
    Image.fromarray(np.ones(SIZE[::-1], np.uint8)).save(tmp_path / "turned.png")
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(tmp_path / "unknown.png")
    (tmp_path / "text.png").write_text("no mask")
    assert "found a mask of 61 × 45 pixels; expected 45 × 61" in save_label(client, image, tmp_path / "turned.png", 400)
    assert "found mask values [9]" in save_label(client, image, tmp_path / "unknown.png", 400)
    assert "found text" in save_label(client, image, tmp_path / "text.png", 400)
    assert "label tag" in save_label(client, image, truth[image], 400, tag="../final")
    for name in ("1.2.3", "*", "..", "tooth_0", "../cache", str(orthanc.segmentations()[0].SeriesInstanceUID)):
        assert "not found" in save_label(client, name, truth[image], 404)
        assert "found no" in infer(client, name, expect=404)
    assert "storing DICOM in the archive" in upload(client, "new", truth[image], 405)
    for path in ("/datastore/image", "/datastore/label"):
        assert client.delete(path, params={"id": image, "tag": "final"}).status_code == 405
    assert (orthanc.instances(), index.read_bytes()) == before
    assert infer(client, image)


def test_inference_as_dicom_seg_is_a_models_and_no_label(client, orthanc, image, tmp_path):
    answer = client.post(
        f"/infer/{MODEL}",
        params={"image": image, "output": "dicom_seg"},
        data={"params": json.dumps({"label_info": [{"name": "anything", "model_name": MODEL}]})},
    )
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/dicom"
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    segmentation = dcmread(tmp_path / "seg.dcm")
    assert {item.SegmentAlgorithmType for item in segmentation.SegmentSequence} == {"AUTOMATIC"}
    mask = as_mask(infer(client, image)[0])
    assert np.array_equal(stored_labels(segmentation), mask)
    orthanc.store(tmp_path / "seg.dcm")
    assert client.get("/info/").json()["datastore"]["completed"] == 0
    proxied = client.get("/proxy/dicom/qido/series", params={"Modality": "SEG"})
    assert proxied.status_code == 200 and str(segmentation.SeriesInstanceUID) in proxied.text


def test_what_others_store_and_delete_counts(client, orthanc, truth, tmp_path):
    image = next_image(client)
    mask = read_mask(truth[image]).astype(np.uint8)
    save_label(client, image, truth[image])
    flipped = np.ascontiguousarray(mask[:, ::-1])
    source = dx_of(tmp_path, image)
    write_dicom_seg(flipped, tmp_path / "newer.dcm", GROUPED, source, "somebody else", is_annotation=True)
    carious = (mask == 5).astype(np.uint8)
    write_dicom_seg(carious, tmp_path / "foreign.dcm", CARIES, source, "somebody else", is_annotation=True)
    newer, foreign = orthanc.store(tmp_path / "newer.dcm"), orthanc.store(tmp_path / "foreign.dcm")
    assert foreign != newer and np.array_equal(label_of(client, image), flipped)

    orthanc.remove_series(newer)
    assert np.array_equal(label_of(client, image), mask)
    for segmentation in orthanc.segmentations():
        orthanc.remove_series(segmentation.SeriesInstanceUID)
    assert client.get("/datastore/label", params={"label": image, "tag": "final"}).status_code == 404
    assert next_image(client) == image

    orthanc.remove_series(image)
    assert "found no" in infer(client, image, expect=404)
    assert not list((tmp_path / "cache").rglob(f"*{image}*")), "images that the archive has deleted are still here"


def test_while_the_archive_is_away_clients_are_told_so(client, orthanc, truth, image):
    infer(client, image)
    orthanc.stop()
    message = rf"{re.escape(orthanc.url)}: found no usable answer of the service .*Check that it runs"
    assert re.match(message, infer(client, image, expect=502))
    assert re.match(message, save_label(client, image, truth[image], 502))
    for answer in (client.get("/info/"), client.post("/activelearning/epistemic", json={})):
        assert answer.status_code == 502 and re.match(message, answer.json()["detail"])
    orthanc.start()
    save_label(client, image, truth[image])
    assert client.get("/info/").json()["datastore"]["completed"] == 1


def test_it_trains_on_the_archives_labels_and_says_what_it_leaves_out(client, orthanc, truth, tmp_path):
    *labelled, last = sorted(truth)
    before = dice(as_mask(infer(client, last)[0]), read_mask(truth[last]))
    for image in labelled[:5]:
        save_label(client, image, truth[image])
    half = dcmread(dx_of(tmp_path, labelled[5]))
    half.Rows, half.PixelData = half.Rows // 2, half.PixelData[: half.Rows // 2 * half.Columns * 2]
    half.save_as(tmp_path / "half.dcm")
    mask = np.ones((half.Rows, half.Columns), np.uint8)
    orthanc.store(
        write_dicom_seg(mask, tmp_path / "s.dcm", GROUPED, tmp_path / "half.dcm", "another size", is_annotation=True)
    )
    training = {"max_epochs": 3, "epoch_length": 20, "learning_rate": 0.003}
    answer = client.post(f"/train/{MODEL}", params={"run_sync": True}, json=training)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert sorted(result["trained_on"] + result["measured_on"]) == [f"{image}.nii.gz" for image in labelled[:5]]
    assert result["published"], result["verdict"]
    (reason,) = result["left_out"].values()
    assert "found a SEG of 22 × 61 pixels; expected 45 × 61" in reason
    content, params = infer(client, last)
    assert params["weights_version"] == 1
    assert dice(as_mask(content), read_mask(truth[last])) > before


def test_batch_inference_keeps_drafts_in_the_cache_and_out_of_the_archive(client, orthanc, truth, image, tmp_path):
    before = orthanc.instances()
    answer = client.post(f"/batch/infer/{MODEL}", params={"run_sync": True, "images": "unlabeled"})
    assert answer.status_code == 200 and sorted(answer.json()) == sorted(truth)
    assert orthanc.instances() == before
    assert client.get("/info/").json()["datastore"]["label_tags"] == {"original": 8, "final": 0}
    mask = as_mask(infer(client, image)[0])
    assert np.array_equal(label_of(client, image, "original"), mask)

    # Requests that are not awaited run in a process of their own, on a datastore of its own.
    archive = DicomArchive(archive_client(orthanc.url), {"Modality": "DX"}, GROUPED)
    CheckedArchive(archive, tmp_path / "cache", "m").save_label(image, str(truth[image]), "original", {"from": "other"})
    assert np.array_equal(label_of(client, image, "original"), read_mask(truth[image]))
    info = client.get("/datastore/label/info", params={"label": image, "tag": "original"}).json()
    assert info["from"] == "other"


def test_proxy_stays_below_the_archive(client, orthanc, truth):
    study = client.get("/proxy/dicom/qido/studies").json()[0]["0020000D"]["Value"][0]
    series = client.get(f"/proxy/dicom/qido/studies/{study}/series").json()[0]["0020000E"]["Value"][0]
    assert series in truth
    assert client.get(f"/proxy/dicom/wado/studies/{study}/series/{series}/metadata").status_code == 200
    assert requests.get(f"{orthanc.root}/system", timeout=30).status_code == 200  # which no client is to reach
    dots = ("..", "%2e%2e", "%252e%252e", "studies/..%2f..", "studies/%252e%252e/%252e%252e", "studies/.%2e/%2e.")
    for way in (f"{dot}{slash}system" for dot in dots for slash in ("/", "%2f", "%252f", "%5c")):
        for prefix in ("", "wado/", "qido/", "stow/"):
            for method in ("GET", "POST"):
                answer = client.request(method, f"/proxy/dicom/{prefix}{way}")
                assert answer.status_code == 404 and "DicomAet" not in answer.text, way
    assert client.get("/proxy/dicom/servers").status_code == 404
