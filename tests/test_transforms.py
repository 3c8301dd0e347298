import numpy as np
import pytest
import torch
from PIL import Image

from common.data.transforms import (
    LoadRadiographd,
    LoadSquared,
    center_square,
    load_square,
    random_patches,
    resize_shorter_side,
)
from common.io import UnreadableRadiographError


def test_loading_gives_pixels_and_keeps_path_and_columns(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(pixels).save(tmp_path / "image.png")
    item = {"image": str(tmp_path / "image.png"), "source": "a"}
    loaded = LoadRadiographd(["image"])(item)
    assert loaded["image_spacing_mm"].isnan().all()
    torch.testing.assert_close(loaded["image"], torch.from_numpy(pixels / 255.0).float()[None])
    assert loaded["image_path"] == item["image"]
    assert loaded["source"] == "a"
    squared = LoadSquared(["image"], 2)(item)
    assert torch.equal(squared["image"], load_square(item["image"], 2)) and squared["image"].shape == (1, 2, 2)
    assert squared["image_path"] == item["image"] and squared["source"] == "a"


@pytest.mark.parametrize("loader", [LoadRadiographd(["image"]), LoadSquared(["image"], 32)])
def test_an_unreadable_file_is_the_readers_error(tmp_path, loader):
    (tmp_path / "image.png").write_text("not a picture")
    with pytest.raises(UnreadableRadiographError, match=r"image\.png"):
        loader({"image": str(tmp_path / "image.png")})


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(64, 128, (32, 64)), (30, 20, (48, 32)), (500, 333, (48, 32)), (32, 48, (32, 48))]
)
def test_aspect_ratio_is_kept(height, width, expected):
    assert resize_shorter_side(torch.rand(1, height, width), 32).shape == (1, *expected)


def test_resizing_keeps_range_and_mean_and_the_crop_is_central():
    image = torch.rand(1, 128, 128)
    resized = resize_shorter_side(image, 32)
    assert resized.min() >= 0 and resized.max() <= 1
    assert abs(resized.mean() - image.mean()) < 0.01
    image = torch.zeros(1, 8, 16)
    image[:, :, 7:9] = 1.0
    assert torch.equal(center_square(image, 8), image[:, :, 4:12])


def test_patches_are_parts_of_their_image_and_belong_to_their_seed():
    image = torch.arange(2 * 6 * 6.0).view(2, 1, 6, 6)
    patches = random_patches(image, 4, seeds=[1, 2])
    for picture, patch in zip(image, patches, strict=True):
        windows = picture.unfold(1, 4, 1).unfold(2, 4, 1).reshape(-1, 4, 4)
        assert (windows == patch[0]).flatten(1).all(1).any()
    assert torch.equal(random_patches(image[1:], 4, seeds=[2]), patches[1:])
    corners = {random_patches(image[:1], 4, seeds=[seed])[0, 0, 0, 0].item() for seed in range(50)}
    assert len(corners) == 9


def test_a_patch_as_large_as_the_image_is_the_image():
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(random_patches(image, 8, seeds=[0, 1]), image)
    with pytest.raises(ValueError, match="9 px"):
        random_patches(image, 9, seeds=[0, 1])
