"""The dental segmenter as a pipeline: how the network is run, what one radiograph gives, and folders of them."""

import csv
import sys

import numpy as np
import pydicom
import pytest
import torch
from conftest import randomise
from monai.inferers import SimpleInferer, SlidingWindowInferer
from PIL import Image
from tiny_bundles import SEGMENTER
from torch import nn

from common.data.dataset import RadiographDataset
from common.data.phantom import draw_chest_phantom
from common.errors import DatasetError, RunError, SettingsError
from common.io import read_radiograph
from common.io.mask_files import read_mask
from common.io.segmentation_classes import CARIES, ELEVEN, GROUPED
from common.io.synthetic_dicom import write_synthetic_dicom
from common.networks.diffusion_segmenter import DiffusionSegmenter
from common.networks.weights import save_weights
from common.pipelines import DentalSegmenter
from common.pipelines.folder_segmentation import FolderSegmentation, mask_tiles
from common.pipelines.segmenter import FlipInferer, segmentation_inferer

NAMES = GROUPED.names[1:]


# ---- how the network is run ----------------------------------------------------------------------------------------


class SideTeller(nn.Module):
    """Calls bright pixels of the left half mesial root (4), those of the right half distal root (6)."""

    def forward(self, image):
        left = torch.arange(image.shape[-1]) < image.shape[-1] // 2
        logits = torch.zeros(len(image), 12, *image.shape[2:])
        logits[:, 4] = 50 * image[:, 0] * left
        logits[:, 6] = 50 * image[:, 0] * ~left
        return logits


def softmax_of(inferer, image, network):
    return inferer(inputs=image, network=network).softmax(dim=1)


def test_flips_give_the_mean_probabilities_of_both_views():
    torch.manual_seed(0)
    network = nn.Conv2d(1, 6, 3, padding=1).eval()
    image = torch.rand(2, 1, 8, 11)
    found = softmax_of(segmentation_inferer(False, [8, 8], 0, True, GROUPED), image, network)
    straight, mirrored = network(image).softmax(1), network(image.flip(-1)).softmax(1).flip(-1)
    torch.testing.assert_close(found, (straight + mirrored) / 2)
    assert (straight - mirrored).abs().max() > 0.05
    torch.testing.assert_close(
        softmax_of(FlipInferer(SimpleInferer(), GROUPED), image.flip(-1), network).flip(-1), found
    )


def test_a_side_that_is_named_changes_in_the_mirror():
    image = torch.zeros(1, 1, 4, 8)
    image[..., :2] = 1
    found = softmax_of(segmentation_inferer(False, [4, 8], 0, True, ELEVEN), image, SideTeller())
    assert (found.argmax(1)[..., :2] == 4).all()
    assert found[:, 4, :, :2].min() > 0.99, "the mirror image's distal root is the mesial root"


def test_certainty_stays_finite():
    class Certain(nn.Module):
        def forward(self, image):
            return torch.stack([image[:, 0] * 1e4, -image[:, 0] * 1e4], dim=1)

    logits = segmentation_inferer(False, [4, 4], 0, True, CARIES)(torch.ones(1, 1, 4, 4), Certain())
    assert logits.isfinite().all() and (logits.softmax(1)[:, 0] == 1).all()


def test_windows_see_no_more_than_their_size_and_are_blended():
    seen = []

    class Watched(nn.Conv2d):
        def forward(self, image):
            seen.append(tuple(image.shape[-2:]))
            return super().forward(image)

    network = Watched(1, 2, 1)
    image = torch.rand(1, 1, 20, 50)
    inferer = segmentation_inferer(True, [16, 24], 0.5, True, CARIES)
    found = inferer(image, network)
    assert set(seen) == {(16, 24)} and len(seen) > 2
    expected = network(image).log_softmax(1)  # 1 × 1: windows change nothing
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=1e-5, rtol=1e-4)
    assert isinstance(segmentation_inferer(True, [16, 24], 0.5, False, CARIES), SlidingWindowInferer)


def test_an_image_smaller_than_the_window_keeps_its_size():
    found = segmentation_inferer(True, [32, 32], 0.25, False, CARIES)(torch.rand(1, 1, 9, 40), nn.Conv2d(1, 2, 1))
    assert found.shape == (1, 2, 9, 40)


@pytest.mark.parametrize(("window", "overlap"), [([16], 0.5), ([16, 0], 0.5), ([16, 16], 1.0)])
def test_windows_that_cannot_be_are_refused(window, overlap):
    with pytest.raises(SettingsError):
        segmentation_inferer(True, window, overlap, False, CARIES)


# ---- one radiograph ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle's folder, as far as a pipeline reads it."""
    root = tmp_path_factory.mktemp("bundle")
    network = DiffusionSegmenter(**{**SEGMENTER, "num_classes": 6})
    randomise(network, 0.3)
    (root / "models").mkdir()
    save_weights(network, root / "models" / "model.pt", {"class_table": "grouped", "image_size": [24, 32]})
    return root


@pytest.fixture(scope="module")
def segmenter(bundle):
    return DentalSegmenter.from_bundle(bundle, "cpu")


def write_image(path, size=(21, 34), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (draw_chest_phantom(*size, seed=seed)[0] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path


def test_a_radiograph_in_any_form_gives_the_same_at_its_own_size(segmenter, tmp_path):
    path = write_image(tmp_path / "tooth.png", (37, 61))
    found = segmenter.segment(path)
    pixels = read_radiograph(path).pixels
    assert found.mask.shape == (37, 61) and found.mask.dtype == torch.uint8 and len(found.mask.unique()) > 1
    for other in (str(path), pixels, pixels[0].numpy()):
        assert torch.equal(segmenter.segment(other).mask, found.mask)
    probabilities = found.probabilities
    assert probabilities.shape == (6, 37, 61) and torch.equal(probabilities.argmax(0).to(torch.uint8), found.mask)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(37, 61))
    assert list(found.areas_px) == list(NAMES) and sum(found.areas_px.values()) == (found.mask > 0).sum()


def test_areas_in_square_millimetres_need_a_spacing(segmenter, tmp_path):
    pixels = draw_chest_phantom(30, 40, seed=1).clamp(0, 1)
    assert segmenter.segment(pixels).areas_mm2 is None
    found = segmenter.segment(pixels, spacing_mm=(0.5, 0.2))
    assert found.areas_mm2 == pytest.approx({name: count * 0.1 for name, count in found.areas_px.items()})


def test_several_at_once_are_as_one_by_one(segmenter, tmp_path):
    sizes = [(37, 61), (61, 37), (37, 61), (24, 32)]
    images = [draw_chest_phantom(*size, seed=seed).clamp(0, 1) for seed, size in enumerate(sizes)]
    together = segmenter.segment_all(images)
    for image, found in zip(images, together, strict=True):
        alone = segmenter.segment(image)
        torch.testing.assert_close(found.logits, alone.logits, atol=1e-4, rtol=1e-4)
        assert found.mask.shape == image.shape[1:]


def test_settings_of_the_bundle_are_those_of_inference(bundle):
    image = draw_chest_phantom(60, 90, seed=2).clamp(0, 1)
    plain = DentalSegmenter.from_bundle(bundle, "cpu").segment(image)
    cleaned = DentalSegmenter.from_bundle(bundle, "cpu", min_area_px=dict.fromkeys(NAMES, 10**6)).segment(image)
    assert (plain.mask > 0).any() and not (cleaned.mask > 0).any()
    windows = DentalSegmenter.from_bundle(bundle, "cpu", sliding_window=True, panoramic_size=(48, 64), flips=True)
    assert windows.segment(image).logits.shape == (6, 48, 64)
    with pytest.raises(SettingsError):
        DentalSegmenter.from_bundle(bundle, "cpu", sliding_window=True, overlap=1.0)


def test_what_is_found_is_saved(segmenter, tmp_path):
    path = write_image(tmp_path / "tooth.png")
    found = segmenter.segment(path)
    row = found.save(tmp_path / "out", nifti=True)
    assert np.array_equal(read_mask(tmp_path / "out" / "tooth_png_mask.png"), found.mask.numpy())
    assert row["root_px"] == found.areas_px["root"]
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        *("tooth_png_mask.png", "tooth_png_mask.nii.gz", "tooth_png_overlay.png")
    }
    with pytest.raises(DatasetError):
        found.save_dicom_seg(tmp_path / "seg.dcm")  # of a PNG


# ---- folders -------------------------------------------------------------------------------------------------------


def folder_job(segmenter, folder, paths, **options):
    chosen = {"overlay": True, "nifti": False, "dicom_seg": False, "batch_size": 2, "sheet_rows": 2, **options}
    dataset = RadiographDataset([{"image": str(path)} for path in paths], segmenter.preprocessing)
    return FolderSegmentation(segmenter, dataset, str(folder / "in"), str(folder / "out"), {"turn": True}, **chosen)


def areas(folder):
    with (folder / "out" / "areas.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_each_image_has_its_files_a_row_and_a_place_on_the_sheet(segmenter, tmp_path):
    paths = [write_image(tmp_path / "in" / name, seed=seed) for seed, name in enumerate(("a/one.png", "b/one.png"))]
    paths.append(write_image(tmp_path / "in" / "c.png", (34, 21)))
    folder_job(segmenter, tmp_path, paths).run()
    assert list(areas(tmp_path)) == ["a__one_png", "b__one_png", "c_png"]
    for path, (name, row) in zip(paths, areas(tmp_path).items(), strict=True):
        mask = read_mask(tmp_path / "out" / f"{name}_mask.png")
        assert np.array_equal(mask, segmenter.segment(path).mask.numpy())
        assert (tmp_path / "out" / f"{name}_overlay.png").exists()
        assert int(row["decay_px"]) == (mask == 5).sum() and row["source"] == str(path)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.mode == "RGB" and 2 * 200 < sheet.height < 3 * 300  # two rows, of pictures 198 px high
        two_wide = sheet.width
    more = [write_image(tmp_path / "in" / f"more_{seed}.png", seed=seed) for seed in range(4)]
    folder_job(segmenter, tmp_path, [*paths, *more], sheet_rows=5).run()
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 2.5 * two_wide and sheet.height < 3 * 300  # five in two rows


def test_the_row_of_an_image_without_dicom_seg_is_there(segmenter, tmp_path):
    pytest.importorskip("highdicom")
    (tmp_path / "in").mkdir()
    good, bad = tmp_path / "in" / "good.dcm", tmp_path / "in" / "bad.dcm"
    for path in (good, bad):
        write_synthetic_dicom(draw_chest_phantom(21, 34, 0), path, identity=path.name, model="t", description="phantom")
    dataset = pydicom.dcmread(bad)
    del dataset.StudyInstanceUID
    dataset.save_as(bad)
    with pytest.raises(RunError, match=r"bad\.dcm"):
        folder_job(segmenter, tmp_path, [bad, good], dicom_seg=True).run()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"bad_dcm_mask.png", "good_dcm_mask.png", "good_dcm_seg.dcm"} <= written
    assert "bad_dcm_seg.dcm" not in written
    assert list(areas(tmp_path)) == ["bad_dcm", "good_dcm"]


def test_images_that_can_have_no_dicom_seg_are_told(segmenter, tmp_path, caplog):
    pytest.importorskip("highdicom")
    paths = [write_image(tmp_path / "in" / name) for name in ("a.png", "b.jpg")]
    dicom = tmp_path / "in" / "c.dcm"
    write_synthetic_dicom(draw_chest_phantom(21, 34, 0), dicom, identity="c", model="t", description="phantom")
    folder_job(segmenter, tmp_path, [*paths, dicom], dicom_seg=True).run()
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and "2 of 3" in told[0] and "a_png" in told[0]
    caplog.clear()
    folder_job(segmenter, tmp_path, [dicom], dicom_seg=True).run()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_dicom_seg_without_highdicom_is_refused_before_anything_is_done(segmenter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom.seg", None)
    with pytest.raises(DatasetError):
        folder_job(segmenter, tmp_path, [], dicom_seg=True)


# ---- contact sheet -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60, 180), (600, 1800), (1800, 600)])
def test_tiles_have_one_size_and_masks_lie_on_their_image(size):
    pixels = torch.zeros(1, *size)
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2, : size[1] // 3] = 1
    pixels[0, : size[0] // 2, : size[1] // 3] = 1
    image, overlay, empty = mask_tiles(pixels, [mask, mask * 0], GROUPED, longer_side=300)
    height, width = image.shape[1:]
    assert max(height, width) == 300 and min(height, width) == 100
    assert overlay.shape == (3, height, width) and overlay.dtype == torch.float32
    drawn = (overlay - empty).abs().sum(0) > 0.05
    assert (drawn == (image[0] > 0.5)).float().mean() > 0.98
    assert overlay.max() <= 1
