import numpy as np
import pytest
import torch
from tiny_benefit import tiny_pipe

from common.data.phantom import draw_chest_phantom
from common.errors import SettingsError
from common.experiments.lung_choice import ChoiceSettings
from common.experiments.lung_segments import (
    METHODS,
    SegmentSettings,
    at_size,
    encode_image,
    evidence,
    fitted_size,
    kmeans_labels,
    membership_affinity,
    otsu_threshold,
)
from common.experiments.lung_study import Tuned, find_lungs
from common.experiments.position_prior import EllipsePrior

SETTINGS = SegmentSettings(timestep=300.0, threshold=0.0, anchors=4, clusters=3)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, tiny_dino):
    return tiny_pipe(tmp_path_factory.mktemp("bundle"), tiny_dino)


@pytest.fixture(scope="module")
def encoded(pipe):
    return encode_image(pipe, draw_chest_phantom(60, 100, seed=0), (300.0,), 1, 0)


@pytest.mark.parametrize(
    ("size", "expected"), [((256, 256), (256, 256)), ((2000, 2000), (256, 256)), ((1000, 2000), (192, 352))]
)
def test_the_fitted_size_keeps_area_and_aspect(size, expected):
    assert fitted_size(*size, side=256, multiple=32) == expected
    with pytest.raises(SettingsError):
        fitted_size(*size, side=16, multiple=32)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_segments_and_an_affinity(encoded, method):
    assert encoded.patch_tokens.shape == (encoded.patch_size[0] * encoded.patch_size[1], 16)
    found, labels = evidence(encoded, method, SETTINGS, EllipsePrior())
    assert labels.shape == found.components.shape == (192, 336) and found.grid == (24, 42)
    assert len(np.unique(labels)) > 1
    np.testing.assert_allclose(found.affinity.sum(1), 1, atol=1e-4)
    again, _ = evidence(encoded, method, SETTINGS, EllipsePrior())
    assert np.array_equal(found.components, again.components)


def test_lungs_come_back_at_the_images_own_size_and_always_the_same(pipe):
    tuned = Tuned(EllipsePrior(), dict.fromkeys(METHODS, SETTINGS), dict.fromkeys(METHODS, ChoiceSettings()))
    pixels = draw_chest_phantom(50, 70, seed=1)
    mask = find_lungs(pipe, tuned, pixels)
    assert mask.shape == (50, 70) and mask.dtype == bool and 0 < mask.mean() < 0.9
    assert np.array_equal(mask, find_lungs(pipe, tuned, pixels))


def test_masks_change_size_with_their_outline():
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    large = at_size(mask, (40, 40))
    assert large[:, 20:].all() and not large[:, :20].any()
    assert np.array_equal(at_size(mask, (10, 10)), mask)


def test_k_means_finds_groups_of_tokens_and_repeats_itself():
    tokens = torch.randn(4 * 6, 5, generator=torch.Generator().manual_seed(0)) * 0.01
    tokens.view(4, 6, 5)[:, 3:] += 1.0
    labels = kmeans_labels(tokens, (4, 6), (40, 60), clusters=2, seed=0)
    assert labels.shape == (40, 60)
    assert len(np.unique(labels[:, :30])) == 1 == len(np.unique(labels[:, 30:])) and labels[0, 0] != labels[0, -1]
    assert np.array_equal(labels, kmeans_labels(tokens, (4, 6), (40, 60), clusters=2, seed=0))


def test_otsu_is_the_exhaustive_search():
    image = np.random.default_rng(1).random((30, 30)) ** 2
    edges = np.linspace(image.min(), image.max(), 65)[1:-1]

    def between(value):
        low, high = image[image < value], image[image >= value]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    assert between(otsu_threshold(image, bins=64)) > 0.999 * max(between(edge) for edge in edges)
    assert np.isfinite(otsu_threshold(np.full((4, 4), 0.5)))


def test_the_affinity_of_segments_is_within_them():
    labels = np.zeros((8, 8), int)
    labels[:, 4:] = 1
    affinity = membership_affinity(labels, (4, 4))
    np.testing.assert_allclose(affinity.sum(1), 1, rtol=1e-6)
    assert affinity[0, 1] == 1 / 8 and affinity[0, 3] == 0
