import numpy as np
import pytest
import torch

from common.io.segmentation_classes import GROUPED
from common.pipelines.mask_sheet import mask_tiles


@pytest.mark.parametrize("size", [(60, 180), (600, 1800), (1800, 600)])
def test_tiles_have_one_size_and_masks_lie_on_their_image(size):
    pixels = torch.zeros(1, *size)
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2, : size[1] // 3] = 1
    pixels[0, : size[0] // 2, : size[1] // 3] = 1
    image, overlay, empty = mask_tiles(pixels, [mask, mask * 0], GROUPED, longer_side=300)
    height, width = image.shape[1:]
    assert max(height, width) == 300 and min(height, width) == 100
    assert overlay.shape[0] == 3 and overlay.shape[1] > height and overlay.dtype == torch.float32
    drawn = (overlay - empty)[:, :height, :width].abs().sum(0) > 0.05
    assert (drawn == (image[0] > 0.5)).float().mean() > 0.98
    assert torch.equal(overlay[:, height:], empty[:, height:])  # the legend
    assert overlay.max() <= 1


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="same rows × columns"):
        mask_tiles(torch.zeros(1, 20, 30), [np.zeros((30, 20), int)], GROUPED)
