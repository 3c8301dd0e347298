"""The app behind MONAI Label's own endpoints, in this process."""

import gzip
import json
import subprocess
import tempfile

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from label_data import MODEL, PATTERNS, SIZE, dice, infer, png_labels, save_label, truth_folder, upload
from PIL import Image

from common.io import read_radiograph
from common.io.mask_files import read_mask
from common.io.synthetic_dicom import write_synthetic_dicom

LABELS = {"root": 1, "canal": 2, "root canal filling": 3, "apical lesion": 4, "decay": 5}


def train(client, expect=200, **params):
    answer = client.post(f"/train/{MODEL}", params={"run_sync": True}, json=params)
    assert answer.status_code == expect, answer.text
    return answer.json() if expect == 200 else answer.json()["detail"]


def agree(one, other):
    """Whether masks of one picture are the same but for rounding: formats of more bits are scaled otherwise."""
    return one.shape == other.shape and (one == other).mean() > 0.9


def snapshot(folder):
    """Every file's content, but for the lock and for when something was served."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def write_dx(path, phantom):
    """A DX without frame of reference or position."""
    pixels = read_radiograph(phantom).pixels
    write_synthetic_dicom(pixels, path, identity=path.name, model="m", description="d", pixel_spacing=(0.2, 0.1))
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.Modality = "DX"
    dataset.save_as(path)
    return path


def test_info_says_what_there_is(client):
    info = client.get("/info/").json()
    assert info["labels"] == LABELS
    assert info["models"][MODEL]["dimension"] == 2 and info["models"][MODEL]["labels"] == LABELS
    assert set(info["strategies"]) == {"epistemic", "random", "first"} and "epistemic" in info["scoring"]
    assert info["trainers"][MODEL]["config"]["max_epochs"] > 0
    assert info["datastore"]["total"] == 8


@pytest.mark.parametrize("kind", ["png", "png16", "rgb", "jpg", "tif"])
def test_pictures_give_png_masks_of_their_own_size(client, studies, tmp_path, kind):
    source = Image.open(studies / "tooth_0.png")
    path = tmp_path / {"png16": "a.b.png", "rgb": "rgb.png"}.get(kind, f"picture.{kind}")
    if kind == "png16":
        Image.fromarray(np.asarray(source).astype(np.uint16) * 257).save(path)
    else:
        (source.convert("RGB") if kind == "rgb" else source).save(path)
    content, params = infer(client, "", file=path)
    assert png_labels(content).shape == SIZE
    assert params["label_names"] == LABELS and params["weights_version"] == 0
    if kind in ("png16", "rgb"):  # the same picture
        assert agree(png_labels(content), png_labels(infer(client, "tooth_0")[0]))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_nifti_and_nrrd_give_their_own_kind_with_rank_and_geometry(client, studies, tmp_path, suffix, rank):
    pixels = np.asarray(Image.open(studies / "tooth_0.png"))
    image = SimpleITK.GetImageFromArray(pixels if rank == 2 else pixels[None])
    image.SetSpacing([0.1, 0.2, 1.0][:rank])
    image.SetOrigin([3.0, 4.0, 5.0][:rank])
    SimpleITK.WriteImage(image, str(tmp_path / f"image{suffix}"))
    plain = png_labels(infer(client, "tooth_0")[0])
    uploaded = as_itk(infer(client, "", file=tmp_path / f"image{suffix}")[0], tmp_path / f"mask{suffix}")
    assert uploaded.GetSize() == image.GetSize()
    np.testing.assert_allclose(uploaded.GetSpacing(), image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(uploaded.GetOrigin(), image.GetOrigin(), rtol=1e-6)
    assert agree(SimpleITK.GetArrayFromImage(uploaded).reshape(SIZE), plain)
    # As 3D Slicer asks for one.
    asked = as_itk(infer(client, "tooth_0", result_extension=suffix, result_dtype="uint8")[0], tmp_path / f"b{suffix}")
    assert asked.GetPixelID() == uploaded.GetPixelID() == SimpleITK.sitkUInt8
    assert np.array_equal(SimpleITK.GetArrayFromImage(asked).reshape(SIZE), plain)


def as_itk(content, path):
    path.write_bytes(content)
    return SimpleITK.ReadImage(str(path))


def test_dicom_without_frame_of_reference_gives_what_is_asked_for(client, studies, tmp_path):
    path = write_dx(tmp_path / "dx.dcm", studies / "tooth_0.png")
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(infer(client, "", file=path)[0]))
    assert mask.shape == (*SIZE[::-1], 1)
    np.testing.assert_allclose(mask.header.get_zooms()[:2], (0.1, 0.2), rtol=1e-5)
    (tmp_path / "seg.dcm").write_bytes(infer(client, "", file=path, result_extension=".dcm")[0])
    segmentation, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(path)
    assert segmentation.Modality == "SEG" and segmentation.StudyInstanceUID == source.StudyInstanceUID
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == list(LABELS)


def test_values_that_are_no_switches_are_refused_and_nothing_is_run(client, tmp_path):
    trap = tmp_path / "trap"
    code = f"$__import__('pathlib').Path('{trap}').touch()"
    assert "flips: found" in infer(client, "tooth_0", expect=400, flips=code)
    assert "max_epochs: found" in train(client, expect=400, max_epochs=code)
    assert not trap.exists()
    plain, flipped = infer(client, "tooth_0")[0], infer(client, "tooth_0", flips=True)[0]
    assert plain != flipped and infer(client, "tooth_0")[0] == plain
    assert "expected one of .png" in infer(client, "tooth_0", expect=400, result_extension=".jpg")


def test_images_that_are_not_there_and_files_of_the_server_are_refused(client):
    for image in ("nothing", "/etc/hostname", "../../etc/hostname"):
        assert "found no" in infer(client, image, expect=404)
    assert "no model" in infer(client, "tooth_0", expect=404, model="other")
    assert client.post("/activelearning/other").status_code == 404


def bad_images(folder):
    """Files that are no radiographs, with what the message says of them."""
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    dicom = write_synthetic_dicom(torch.rand(1, 20, 30), folder / "ok.dcm", identity="a", model="m", description="d")
    (folder / "cut.dcm").write_bytes(dicom.read_bytes()[:-200])
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((8, 9, 10)), np.eye(4)), folder / "volume.nii.gz")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.uint8)), str(folder / "volume.nrrd"))
    (folder / "cut.nrrd").write_bytes((folder / "volume.nrrd").read_bytes()[:60])
    found = {"text.png": "text", "empty.png": "empty", "cut.dcm": "found", "volume.nii.gz": r"(8, 9, 10)"}
    return {**found, "volume.nrrd": "(6, 5, 4)", "cut.nrrd": "NRRD"}


def test_bad_images_are_refused_and_leave_nothing_and_good_ones_are_listed(client, studies, tmp_path, monkeypatch):
    client.get("/info/")
    before = snapshot(studies)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name, message in bad_images(tmp_path).items():
        assert message in upload(client, "new", tmp_path / name, expect=400)
        assert message in infer(client, "", expect=400, file=tmp_path / name)
    assert "image id" in upload(client, "../outside", studies / "tooth_0.png", expect=400)
    (tmp_path / "image.bmp").write_bytes((studies / "tooth_0.png").read_bytes())
    assert "found the suffix" in upload(client, "new", tmp_path / "image.bmp", expect=400)
    assert "another image" in upload(client, "tooth_0", studies / "tooth_1.png", expect=409)
    assert snapshot(studies) == before and client.get("/info/").json()["datastore"]["total"] == 8
    for _ in range(2):  # the same one twice is one
        assert upload(client, "new.name", studies / "tooth_0.png") == {"image": "new.name"}
    assert (studies / "new.name.png").read_bytes() == (studies / "tooth_0.png").read_bytes()
    assert client.get("/info/").json()["datastore"]["total"] == 9
    assert png_labels(infer(client, "new.name")[0]).shape == SIZE
    assert not list((tmp_path / "temporary").iterdir())


def bad_labels(folder):
    """Files that are no masks of a phantom, with what the message says of them."""
    (folder / "text.png").write_text("not a mask")
    Image.fromarray(np.ones(SIZE[::-1], np.uint8)).save(folder / "turned.png")
    Image.fromarray(np.full(SIZE, 6, np.uint8)).save(folder / "unknown.png")
    Image.fromarray(np.ones(SIZE, np.uint8)).save(folder / "lossy.jpg")
    nibabel.save(nibabel.Nifti1Image(np.ones((*SIZE[::-1], 3), np.uint8), np.eye(4)), folder / "volume.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full(SIZE[::-1], 0.5, np.float32), np.eye(4)), folder / "half.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "half.nii.gz").read_bytes()[:100])
    wrong = {"text.png": "text", "turned.png": "61 × 45", "unknown.png": "mask values [6]", "lossy.jpg": "JPEG"}
    return {**wrong, "volume.nii.gz": "(61, 45, 3)", "half.nii.gz": "not whole", "cut.nii.gz": "found"}


def test_bad_labels_are_refused_and_the_one_before_stays(client, studies, tmp_path):
    truth = truth_folder(studies)
    save_label(client, "tooth_0", truth / "tooth_0.png")
    before = snapshot(studies)
    for name, message in bad_labels(tmp_path).items():
        assert message in save_label(client, "tooth_0", tmp_path / name, expect=400), name
    assert "label tag" in save_label(client, "tooth_0", truth / "tooth_0.png", expect=400, tag="../../x")
    assert "not found" in save_label(client, "nothing", truth / "tooth_0.png", expect=404)
    assert snapshot(studies) == before
    assert client.get("/info/").json()["datastore"]["completed"] == 1


def test_labels_come_as_png_nifti_and_nrrd_and_the_newest_counts(client, studies, tmp_path):
    truth = np.asarray(Image.open(truth_folder(studies) / "tooth_0.png"))
    nibabel.save(nibabel.Nifti1Image(truth.T[..., None], np.diag([-1.0, -1, 1, 1])), tmp_path / "label.nii.gz")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(truth[None]), str(tmp_path / "label.nrrd"))
    Image.fromarray(truth).save(tmp_path / "label.png")
    for name, kept in (("label.nii.gz", ".nii.gz"), ("label.png", ".png"), ("label.nrrd", ".nii.gz")):
        save_label(client, "tooth_0", tmp_path / name)
        labels = sorted(path.name for path in (studies / "labels" / "final").iterdir())
        assert labels == [f"tooth_0{kept}"], name
        assert np.array_equal(read_mask(studies / "labels" / "final" / labels[0]), truth)
        answer = client.get("/datastore/label", params={"label": "tooth_0", "tag": "final"})
        assert answer.status_code == 200 and len(answer.content) > 50
    Image.fromarray(np.full(SIZE, 1, np.uint8)).save(tmp_path / "label.png")  # numbered anew by Slicer
    save_label(client, "tooth_0", tmp_path / "label.png", label_info=[{"name": "decay", "idx": 5}])
    assert np.unique(read_mask(studies / "labels" / "final" / "tooth_0.png")).tolist() == [5]


def label_some(client, studies, count):
    for number in range(count):
        save_label(client, f"tooth_{number}", truth_folder(studies) / f"tooth_{number}.png")


def test_training_publishes_what_is_better_and_can_be_undone(client, studies, tmp_path, tiny_bundle):
    shipped = (tiny_bundle / "models" / "model.pt").read_bytes()
    truth = np.asarray(Image.open(truth_folder(studies) / "tooth_7.png"))
    before = dice(png_labels(infer(client, "tooth_7")[0]), truth)
    label_some(client, studies, 5)
    result = train(client, max_epochs=3, epoch_length=20, learning_rate=0.003)
    assert result["published"] and result["served_version"] == 1 and result["is_held_out"], result["verdict"]
    assert len(result["trained_on"]) == 4 and len(result["measured_on"]) == 1
    assert not set(result["trained_on"]) & set(result["measured_on"])
    content, params = infer(client, "tooth_7")
    assert params["weights_version"] == 1 and dice(png_labels(content), truth) > before
    assert (tiny_bundle / "models" / "model.pt").read_bytes() == shipped
    assert sorted(path.name for path in (tmp_path / "weights").glob("*.pt")) == ["v0001.pt"]
    assert not list((tmp_path / "weights" / "runs").rglob("*.pt"))

    worse = train(client, max_epochs=1, epoch_length=1, learning_rate=1.0)
    assert not worse["published"] and worse["served_version"] == 1 and "not better" in worse["verdict"]
    assert train(client, use_version=0)["served_version"] == 0
    assert infer(client, "tooth_7")[1]["weights_version"] == 0
    assert "expected one of 0, 1" in train(client, expect=400, use_version=5)
    stats = client.get("/info/").json()["train_stats"][MODEL]
    assert stats["served_version"] == 0 and stats["versions"]["1"]["after"]["mean_dice"] > 0


def test_few_labels_are_measured_on_and_unreadable_ones_left_out(client, studies):
    assert "Submit labels first" in train(client, expect=400)
    label_some(client, studies, 2)
    result = train(client, max_epochs=1, epoch_length=2)
    assert not result["is_held_out"] and result["measured_on"] == result["trained_on"] and not result["left_out"]
    assert "too few" in result["verdict"]
    (studies / "labels" / "final" / "tooth_0.png").write_text("damaged by hand")
    result = train(client, max_epochs=1, epoch_length=2)
    assert list(result["left_out"]) == ["tooth_0.png"] and result["trained_on"] == ["tooth_1.png"]


def test_scores_are_entropies_and_the_least_sure_image_comes_first(client, studies):
    answer = client.post("/scoring/epistemic", params={"run_sync": True}, json={"samples": 4}).json()
    assert len(answer["scores"]) == 8 and all(0 < score < np.log(6) for score in answer["scores"].values())
    best = max(answer["scores"], key=answer["scores"].get)
    sample = client.post("/activelearning/epistemic", json={}).json()
    assert sample["id"] == best and sample["weight"] == answer["scores"][best]
    again = client.post("/scoring/epistemic", params={"run_sync": True}, json={"samples": 4, "all": True}).json()
    assert again["scores"] == answer["scores"]
    save_label(client, best, truth_folder(studies) / f"{best}.png")
    assert client.post("/activelearning/epistemic", json={}).json()["id"] != best
    flips = client.post("/scoring/epistemic", params={"run_sync": True}, json={"uncertainty": "flips", "all": True})
    assert len(flips.json()["scores"]) == 7


def test_next_samples_and_batch_inference_go_past_what_cannot_be_read(client, studies):
    (studies / "a_broken.png").write_text("no picture")
    client.get("/info/")
    sample = client.post("/activelearning/epistemic", json={}).json()  # which needs no scoring before
    assert sample["id"].startswith("tooth_") and sample["path"].endswith(".png")
    assert all(client.post(f"/activelearning/{name}", json={}).json()["id"] for name in ("random", "first"))
    answer = client.post(f"/batch/infer/{MODEL}", params={"run_sync": True, "images": "unlabeled"})
    assert answer.status_code == 200
    result = answer.json()
    assert "found text" in result.pop("a_broken")["error"] and len(result) == 8
    originals = sorted(path.name for path in (studies / "labels" / "original").iterdir())
    assert originals == [f"tooth_{number}.png" for number in range(8)]
    assert json.loads((studies / "datastore_v2.json").read_text())["objects"]["tooth_0"]["labels"]["original"]


def test_patterns_are_those_of_the_start_script(repository):
    lines = (repository / "scripts" / "serve_label.sh").read_text().splitlines()
    script = [line for line in lines if "suffixes=" in line] + ['echo "[${suffixes%,}]"']
    done = subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    assert set(PATTERNS) <= set(json.loads(done.stdout))
