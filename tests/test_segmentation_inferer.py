import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from common.io.segmentation_classes import CARIES, ELEVEN, GROUPED
from common.pipelines.segmentation_inferer import FlipInferer, segmentation_inferer


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
    with pytest.raises(ValueError, match="expected rows and columns in px, and a share"):
        segmentation_inferer(True, window, overlap, False, CARIES)


def test_another_table_than_the_networks_is_refused():
    with pytest.raises(ValueError, match=r"expected \[B, 6, H, W\]"):
        FlipInferer(SimpleInferer(), GROUPED)(torch.rand(1, 1, 4, 4), nn.Conv2d(1, 2, 1))
