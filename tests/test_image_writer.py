import struct

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.phantom import draw_chest_phantom
from common.io import read_radiograph
from common.io.image_writer import write_png


def test_every_grey_level_survives_the_round_trip_of_8_bits(tmp_path):
    levels = torch.arange(256).reshape(1, 8, 32) / 255
    assert torch.equal(read_radiograph(write_png(levels, tmp_path / "a.png")).pixels, levels)


def test_every_grey_level_is_stored_exactly_in_16_bits(tmp_path):
    levels = torch.arange(65536).reshape(1, 256, 256) / 65535
    path = write_png(levels, tmp_path / "a.png", bits=16)
    with Image.open(path) as image:
        stored = np.asarray(image)
    assert np.array_equal(stored.ravel(), np.arange(65536))
    assert path.read_bytes()[24:26] == bytes([16, 0])  # bit depth 16, grey


def test_the_reader_stretches_16_bits_as_the_docstring_says(tmp_path):
    pixels = draw_chest_phantom(64, 48, seed=0).clamp(0, 1) * 0.5 + 0.2
    back = read_radiograph(write_png(pixels, tmp_path / "a.png", bits=16)).pixels
    low, high = np.percentile(pixels.numpy(), (0.5, 99.5))
    assert torch.allclose(back, ((pixels - low) / (high - low)).clamp(0, 1), atol=1e-3)


def test_rows_are_rows(tmp_path):
    pixels = torch.zeros(1, 4, 7)
    pixels[0, 3, 1] = 1
    with Image.open(write_png(pixels, tmp_path / "a.png")) as image:
        assert image.size == (7, 4) and image.getpixel((1, 3)) == 255


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
