import pytest
import torch

from common.data.mask_transforms import PadResized
from common.data.phantom import draw_chest_phantom
from common.errors import UserError
from common.io.image_writer import trim_padding


@pytest.mark.parametrize(("height", "width"), [(48, 40), (30, 90), (48, 64)])
def test_padding_goes_and_the_radiograph_stays(height, width):
    """Bars left and right, bars above and below, and none."""
    content = draw_chest_phantom(height, width, seed=1).clamp(0.1, 1.0)
    item = PadResized(["image"], size=(48, 64))({"image": content})
    resized = item["geometry"][2:4].tolist()
    assert list(trim_padding(item["image"]).shape) == [1, *resized]
    top, left = item["geometry"][4:].tolist()
    expected = item["image"][:, top : top + resized[0], left : left + resized[1]]
    assert torch.equal(trim_padding(item["image"]), expected)


def test_black_lines_inside_the_image_stay():
    image = torch.full((1, 20, 20), 0.5)
    image[:, :4] = 0.0
    image[:, 10:12] = 0.0
    assert trim_padding(image).shape == (1, 16, 20)
    assert trim_padding(image)[0, 6:8].max() == 0.0


def test_padding_as_a_network_draws_it_goes_too():
    """Not quite black, and with a bright speck here and there."""
    generator = torch.Generator().manual_seed(0)
    image = 0.03 * torch.rand(1, 40, 60, generator=generator)
    image[:, :, 10:50] = 0.4
    image[0, torch.arange(0, 40, 20), 5] = 1.0
    assert torch.equal(trim_padding(image), image[:, :, 10:50])


def test_the_threshold_is_the_brightest_black():
    image = torch.full((1, 10, 10), 0.5)
    image[:, :2] = 0.25
    assert trim_padding(image, threshold=0.2).shape == (1, 10, 10)
    assert trim_padding(image, threshold=0.25).shape == (1, 8, 10)


@pytest.mark.parametrize("kept", [0, 3])
def test_an_image_of_which_too_little_would_be_left_comes_back_whole(kept):
    image = torch.zeros(1, 10, 12)
    image[:, :kept] = 1.0
    assert torch.equal(trim_padding(image), image)
    assert trim_padding(image, min_share=0.3).shape == (1, kept or 10, 12)


def test_the_result_is_a_copy():
    image = torch.full((1, 4, 4), 0.5)
    trim_padding(image).zero_()
    assert image.min() == 0.5


@pytest.mark.parametrize("knobs", [{"threshold": 1.0}, {"threshold": -0.1}, {"min_share": 0.0}, {"min_share": 1.1}])
def test_knobs_out_of_range_are_refused(knobs):
    with pytest.raises(UserError):
        trim_padding(torch.zeros(1, 4, 4), **knobs)


@pytest.mark.parametrize("shape", [(4, 4), (2, 1, 4, 4), (1, 0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[C, H, W\], found"):
        trim_padding(torch.zeros(shape))
