"""What pipelines take: radiographs in any form, bundles as folders or zips."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import draw_radiographs
from monai.data import MetaTensor
from PIL import Image

from common.errors import WeightsError
from common.io import UnreadableRadiographError, read_radiograph
from common.pipelines.inputs import OpenBundle, as_list, as_radiograph, pick_device, read_generated


def test_a_file_its_radiograph_and_its_pixels_are_the_same(tmp_path):
    draw_radiographs(tmp_path / "in", 1, 32)
    path = tmp_path / "in" / "phantom_0.png"
    expected = read_radiograph(path)
    assert as_radiograph(expected) is expected
    stored = np.asarray(Image.open(path))
    forms = [path, str(path), stored, stored[None], torch.from_numpy(stored.copy()), stored / 255.0]
    forms += [stored.astype(np.uint16) * 257, MetaTensor(expected.pixels)]
    for form in forms:
        found = as_radiograph(form)
        assert found.pixels.shape == (1, 32, 32) and type(found.pixels) is torch.Tensor
        torch.testing.assert_close(found.pixels, torch.from_numpy(stored / 255.0)[None].float(), atol=1e-6, rtol=0)
    assert as_radiograph(stored, (0.1, 0.2)).spacing_mm == (0.1, 0.2)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.rand(3, 8, 8),
        torch.rand(1, 1, 8, 8),
        torch.rand(8),
        torch.rand(1, 0, 8),
        torch.rand(8, 8) * 255,
        torch.rand(8, 8) - 0.5,
        torch.full((8, 8), 0.5),
        torch.tensor([[0.0, float("nan")]]),
    ],
)
def test_other_pixels_are_refused(pixels):
    with pytest.raises(UnreadableRadiographError):
        as_radiograph(pixels)


def test_one_is_a_list_of_one_and_a_batch_a_list_of_many():
    one = torch.rand(1, 8, 8)
    assert as_list("a.png") == ["a.png"] and as_list(["a.png", "b.png"]) == ["a.png", "b.png"]
    assert [each.shape for each in as_list(one)] == [each.shape for each in as_list(one[None])] == [(1, 8, 8)]
    assert len(as_list(np.zeros((3, 1, 8, 8)))) == 3


def test_a_device_is_taken_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("inside", ["", "bundle"])
def test_a_zip_is_unpacked_without_its_code_for_as_long_as_it_is_open(tmp_path, inside):
    bundle = tmp_path / "in" / inside
    (bundle / "models" / "dino").mkdir(parents=True)
    (bundle / "scripts" / "models").mkdir(parents=True)
    for name in ("models/model.pt", "models/dino/config.json", "scripts/models/code.py"):
        (bundle / name).write_text(name)
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", tmp_path / "in")
    opened = OpenBundle(archive)
    models = opened.models
    assert (models / "dino" / "config.json").read_text() == "models/dino/config.json"
    assert inside == "" or not list(models.parent.rglob("code.py"))
    del opened
    assert not models.exists()
    assert OpenBundle(bundle).models == bundle / "models"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_in_a_zip_is_told(tmp_path, compression):
    content = np.random.default_rng(0).bytes(5000)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w", compression) as archive:
        archive.writestr("models/model.pt", content)
    whole = (tmp_path / "bundle.zip").read_bytes()
    for at in range(60, 5000, 301):
        (tmp_path / "bundle.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(WeightsError, match="damaged"):
            OpenBundle(tmp_path / "bundle.zip")


def test_what_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "file").write_text("no zip")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder", "nothing"):
        with pytest.raises(WeightsError):
            OpenBundle(tmp_path / name)


def test_a_picture_of_one_grey_and_of_sixteen_bits_is_read_as_written(tmp_path):
    Image.new("L", (4, 4), 51).save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 4), 13107, np.uint16)).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        torch.testing.assert_close(read_generated(tmp_path / name), torch.full((1, 4, 4), 0.2))
