import numpy as np
import pytest
from tiny_lungs import zero_shot_bundle

from common.data.phantom import draw_chest_phantom
from common.experiments.attention_segmenter import METHODS, SegmentSettings, at_size, evidence, load_networks, look
from common.experiments.lung_choice import ChoiceSettings
from common.experiments.lung_tuning import Tuned
from common.experiments.lungs import ZeroShotLungs
from common.experiments.position_prior import EllipsePrior

SETTINGS = SegmentSettings(timestep=300.0, threshold=0.0, anchors=4, clusters=3)


@pytest.fixture(scope="module")
def networks(tmp_path_factory, tiny_dino):
    return load_networks(zero_shot_bundle(tmp_path_factory.mktemp("bundle") / "bundle", tiny_dino))


@pytest.fixture(scope="module")
def seen(networks):
    return look(networks, draw_chest_phantom(60, 100, seed=0), (300.0,), 1, 0)


def test_an_image_is_seen_near_the_training_area_in_its_own_aspect(seen):
    assert seen.image.shape == (1, 192, 336)
    assert seen.patch_tokens.shape == (seen.patch_size[0] * seen.patch_size[1], 16)
    assert {layer.shape[:2] for layer in seen.layers[300.0]} == {(12, 21)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_segments_and_an_affinity(seen, method):
    found, labels = evidence(seen, method, SETTINGS, EllipsePrior())
    assert labels.shape == found.components.shape == (192, 336) and found.grid == (24, 42)
    assert len(np.unique(labels)) > 1
    np.testing.assert_allclose(found.affinity.sum(1), 1, atol=1e-4)
    again, _ = evidence(seen, method, SETTINGS, EllipsePrior())
    assert np.array_equal(found.components, again.components)


def test_lungs_come_back_at_the_images_own_size_and_always_the_same(networks):
    tuned = Tuned(EllipsePrior(), dict.fromkeys(METHODS, SETTINGS), dict.fromkeys(METHODS, ChoiceSettings()))
    lungs = ZeroShotLungs(networks, tuned)
    pixels = draw_chest_phantom(50, 70, seed=1)
    mask = lungs(pixels)
    assert mask.shape == (50, 70) and mask.dtype == bool and 0 < mask.mean() < 0.9
    assert np.array_equal(mask, lungs(pixels))


def test_masks_change_size_with_their_outline():
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    large = at_size(mask, (40, 40))
    assert large[:, 20:].all() and not large[:, :20].any()
    assert np.array_equal(at_size(mask, (10, 10)), mask)
