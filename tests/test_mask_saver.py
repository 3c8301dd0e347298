import csv
import sys

import numpy as np
import pydicom
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from common.data.phantom import draw_chest_phantom
from common.errors import DatasetError, UserError
from common.io.mask_files import read_mask
from common.io.segmentation_classes import GROUPED
from common.io.synthetic_dicom import write_synthetic_dicom
from common.pipelines.mask_saver import MaskSaver


def write_image(path, size=(21, 34)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, size, np.uint8)).save(path)
    return path


def saver(folder, **options):
    chosen = {"overlay": True, "nifti": False, "dicom_seg": False, "model": "test 0", "sheet_images": 2, **options}
    return MaskSaver(str(folder / "out"), str(folder / "in"), GROUPED, **chosen)


def run(handler, masks):
    """An engine as the evaluator is after decollating, one image at a time."""
    engine = Engine(lambda engine, batch: [{"pred": torch.as_tensor(masks[item["image_path"]])} for item in batch])
    handler.attach(engine)
    engine.run([[{"image_path": path}] for path in masks])


def labels(size=(21, 34), seed=0):
    return np.random.default_rng(seed).integers(0, 6, size).astype(np.uint8)


def areas(folder):
    with (folder / "out" / "areas.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_each_image_has_its_files_a_row_and_a_place_on_the_sheet(tmp_path):
    paths = [write_image(tmp_path / "in" / name) for name in ("a/one.png", "b/one.png", "a__one.png")]
    masks = {str(path): labels(seed=seed) for seed, path in enumerate(paths)}
    masks[str(paths[1])] = masks[str(paths[1])][None]  # [1, H, W] will do
    run(saver(tmp_path), masks)
    names = ["a__one_png", "b__one_png", "a__one_png_2"]
    for name, mask in zip(names, masks.values(), strict=True):
        assert np.array_equal(read_mask(tmp_path / "out" / f"{name}_mask.png"), mask.reshape(21, 34))
        assert (tmp_path / "out" / f"{name}_overlay.png").exists()
        assert int(areas(tmp_path)[name]["decay_px"]) == (mask == 5).sum()
    assert list(areas(tmp_path)) == names
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.mode == "RGB" and 2 * 200 < sheet.height < 3 * 300  # two rows, of pictures 198 px high


def test_an_image_that_cannot_be_written_stops_no_other(tmp_path, caplog):
    paths = [write_image(tmp_path / "in" / f"{name}.png") for name in "abc"]
    masks = {str(paths[0]): labels(), str(paths[1]): labels((34, 21)), str(paths[2]): labels()}
    with pytest.raises(UserError, match=r"1 of 3 images .*b\.png: found a mask \(34, 21\)"):
        run(saver(tmp_path, sheet_images=9), masks)
    assert list(areas(tmp_path)) == ["a_png", "c_png"]
    assert (tmp_path / "out" / "contact_sheet.png").exists()
    assert "b.png" in caplog.text


def test_the_row_of_an_image_without_dicom_seg_is_there(tmp_path):
    pytest.importorskip("highdicom")
    good, bad = tmp_path / "in" / "good.dcm", tmp_path / "in" / "bad.dcm"
    for path in (good, bad):
        write_synthetic_dicom(draw_chest_phantom(21, 34, 0), path, identity=path.name, model="t", description="phantom")
    dataset = pydicom.dcmread(bad)
    del dataset.StudyInstanceUID
    dataset.save_as(bad)
    with pytest.raises(UserError, match=r"1 of 2 images .*bad\.dcm"):
        run(saver(tmp_path, dicom_seg=True), {str(bad): labels(), str(good): labels()})
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"bad_dcm_mask.png", "good_dcm_mask.png", "good_dcm_seg.dcm"} <= written
    assert "bad_dcm_seg.dcm" not in written
    assert list(areas(tmp_path)) == ["bad_dcm", "good_dcm"]


def test_many_failures_are_counted(tmp_path):
    masks = {str(tmp_path / "in" / f"{number}.png"): labels() for number in range(7)}
    with pytest.raises(UserError, match=r"7 of 7 images .*; and 2 more, see the log"):
        run(saver(tmp_path), masks)
    assert not (tmp_path / "out" / "areas.csv").exists()


def test_dicom_seg_without_highdicom_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom.seg", None)
    with pytest.raises(DatasetError, match="no usable highdicom"):
        saver(tmp_path, dicom_seg=True)
