import struct

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.mask_transforms import PadResized
from common.data.phantom import draw_chest_phantom
from common.io import read_radiograph
from common.io.image_writer import trim_padding, write_png


def test_every_grey_level_survives_in_8_bits_and_is_stored_exactly_in_16(tmp_path):
    levels = torch.arange(256).reshape(1, 8, 32) / 255
    assert torch.equal(read_radiograph(write_png(levels, tmp_path / "a.png")).pixels, levels)
    path = write_png(torch.arange(65536).reshape(1, 256, 256) / 65535, tmp_path / "a.png", bits=16)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image).ravel(), np.arange(65536))
    assert path.read_bytes()[24:26] == bytes([16, 0])  # bit depth 16, grey


def test_the_picture_says_that_it_is_synthetic_and_how_it_was_made(tmp_path):
    provenance = {"seed": "7", "label": "Knöchel ≥ 2", "Synthetic": "no"}
    path = write_png(torch.rand(1, 4, 4), tmp_path / "a.png", provenance=provenance)
    with Image.open(path) as image:
        assert image.text == {"seed": "7", "label": "Knöchel ≥ 2", "Synthetic": "true"}
    text = b"tEXtSynthetic\0true"  # a chunk as the PNG specification has it, for tools that know no iTXt
    assert struct.pack(">I", len(text) - 4) + text in path.read_bytes()


def test_the_same_image_gives_the_same_bytes(tmp_path):
    pixels = torch.rand(1, 9, 8)
    first, second = (write_png(pixels, tmp_path / name, 16, {"seed": "1"}) for name in ("a.png", "folder/b.png"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("pixels", "bits", "found"),
    [
        (torch.tensor([[[0.0, 1.001]]]), 8, "0 to 1.001"),
        (torch.tensor([[[-0.001, 1.0]]]), 16, "-0.001 to 1"),
        (torch.tensor([[[0.5, float("nan")]]]), 8, "nan"),
        (torch.zeros(4, 4), 8, r"\(4, 4\)"),
        (torch.zeros(3, 4, 4), 8, r"\(3, 4, 4\)"),
        (torch.zeros(1, 0, 4), 8, r"\(1, 0, 4\)"),
        (torch.zeros(1, 4, 4), 12, "bits 12"),
    ],
)
def test_what_no_file_can_hold_is_refused_and_nothing_is_written(tmp_path, pixels, bits, found):
    with pytest.raises(ValueError, match=f"found.*{found}.*expected"):
        write_png(pixels, tmp_path / "a.png", bits)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("kept", [0, 3])
def test_an_image_of_which_too_little_would_be_left_comes_back_whole(kept):
    image = torch.zeros(1, 10, 12)
    image[:, :kept] = 1.0
    assert torch.equal(trim_padding(image), image)
