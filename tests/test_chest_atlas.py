import json
from dataclasses import astuple, replace

import numpy as np
import pytest

from common.data.phantom import draw_chest_phantom, draw_lung_mask
from common.experiments.chest_atlas import (
    SIDE,
    ChestAtlas,
    Pose,
    content_box,
    evened,
    find_pose,
    make_atlas,
    pose_of_mask,
)
from common.experiments.lung_choice import dice
from common.experiments.lung_study import FRAMINGS, framed, framed_mask, lung_cases

SIZE = (96, 120)
LARGEST_LOSS = 0.03  # of Dice, by a framing


def phantom(seed, size=SIZE):
    return draw_chest_phantom(*size, seed=seed)[0].numpy(), draw_lung_mask(*size, seed=seed)[0].numpy()


@pytest.fixture(scope="module")
def atlas():
    return make_atlas(*zip(*(phantom(seed) for seed in range(8)), strict=True))


def found(image, atlas):
    return find_pose(image, atlas).laid(atlas.lung, image.shape) > 0.5


def test_a_pose_is_laid_where_it_was_read():
    pose = Pose(0.45, 0.55, 0.5, 0.4, 0.2)
    rows, columns = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    for ramp, values in ((rows, pose.places(SIZE)[0]), (columns, pose.places(SIZE)[1])):
        laid, inside = pose.laid(values, SIZE), pose.laid(np.ones((SIDE, SIDE)), SIZE) > 0.999
        assert inside.sum() > 1000
        np.testing.assert_allclose(laid[inside], ramp[inside], atol=0.01)


def test_a_pose_in_a_box_is_the_same_place():
    pose, box = Pose(0.45, 0.55, 0.5, 0.4, 0.2), (slice(10, 80), slice(30, 110))
    seen, values = pose.seen_from(box, SIZE), np.random.default_rng(0).random((SIDE, SIDE))
    np.testing.assert_allclose(astuple(seen.within(box, SIZE)), astuple(pose))
    np.testing.assert_allclose(seen.laid(values, (70, 80)), pose.laid(values, SIZE)[box], atol=1e-9)
    assert pose.frame(SIZE, margin=0.0) == (slice(19, 67), slice(42, 90))
    assert Pose(0.5, 0.5, 2.0, 2.0).frame(SIZE) == (slice(0, 96), slice(0, 120))


def test_the_usual_pose_costs_nothing_and_what_lies_outside_is_told():
    usual = Pose(0.48, 0.5, 0.72, 0.72 * 1.22)
    assert usual.deviation((100, 100)) == pytest.approx(0) and usual.share_outside() == 0
    assert all(replace(usual, **{name: 0.3}).deviation((100, 100)) > 1 for name in ("row", "column", "height", "angle"))
    assert Pose(0.0, 0.5, 0.5, 0.5).share_outside() == pytest.approx(0.5)


def test_the_pose_of_a_mask_is_its_box():
    mask = np.zeros((40, 100), bool)
    mask[10:30, 20:40] = mask[12:20, 60:90] = True
    assert astuple(pose_of_mask(mask)) == pytest.approx((0.5, 0.55, 0.5, 0.7, 0))
    with pytest.raises(ValueError):
        pose_of_mask(mask & False)


def test_the_atlas_is_symmetric_and_its_lungs_are_dark(atlas):
    assert np.array_equal(atlas.chest, atlas.chest[:, ::-1]) and np.array_equal(atlas.lung, atlas.lung[:, ::-1])
    assert atlas.chest.shape == atlas.lung.shape == (SIDE, SIDE) and atlas.chest.std() == pytest.approx(1, abs=0.02)
    assert atlas.chest[atlas.lung > 0.9].mean() < atlas.chest[atlas.lung < 0.1].mean() - 0.5


def test_masks_that_do_not_count_only_say_how_their_images_lie():
    images, masks = zip(*(phantom(seed) for seed in range(2)), strict=True)
    one, both = make_atlas(images, masks, [True, False]), make_atlas(images, masks)
    assert one.lungs == make_atlas(images[:1], masks[:1]).lungs != both.lungs and one.picture == both.picture


def test_borders_are_left_out_but_not_an_image_without_any():
    image, _ = phantom(20)
    framed = np.ones((150, 160), np.float32)
    framed[20:116, 25:145] = image
    framed[116:] = 0
    assert content_box(framed) == (slice(20, 116), slice(25, 145))
    assert content_box(np.zeros((20, 30))) == (slice(0, 20), slice(0, 30))


def test_brightness_and_contrast_do_not_count():
    image, _ = phantom(21)
    np.testing.assert_allclose(evened(image), evened(0.2 + 0.5 * image), atol=0.05)
    assert np.abs(evened(np.full((30, 40), 0.4))).max() < 1e-3


def check_the_framing_drill(cases, atlas, least):
    """Shrunk on black or white borders, shifted, turned: the lungs are found as well as in the images as they are."""
    means = {}
    for name, framing in FRAMINGS.items():
        pairs = ((found(framed(image, **framing), atlas), framed_mask(truth, **framing)) for image, truth in cases)
        means[name] = np.mean([dice(*pair) for pair in pairs])
    before = means["as it is"]
    assert before > least
    assert {name: mean for name, mean in means.items() if round(before - mean, 3) > LARGEST_LOSS} == {}


def test_the_framing_drill(atlas):
    check_the_framing_drill([phantom(seed) for seed in range(30, 34)], atlas, least=0.85)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("source", "least"), [("kermany", 0.85), ("montgomery", 0.78)])  # the latter without the heart
def test_the_framing_drill_of_the_atlas_that_ships(shared_data, repository, source, least):
    tuned = repository / "bundles/cxr_dino_latent_diffusion/docs/zero_shot_lungs/tuned.json"
    atlas = ChestAtlas(**{name: tuple(rows) for name, rows in json.loads(tuned.read_text())["atlas"].items()})
    cases = [case for case in lung_cases(shared_data / "cxr", "lung_masks.csv", None) if case.source == source][:10]
    pairs = [(case.pixels()[0].numpy(), case.truth()) for case in cases]
    check_the_framing_drill(pairs, atlas, least)


def test_framings_do_what_they_say():
    image = np.zeros((100, 100), np.float32)
    image[40:60, 20:30] = 1
    assert np.array_equal(framed(image), image)
    small = framed(image, scale=0.6, border=1.0)
    assert small[:19].min() == 1 and small[21:79, 21:79].sum() == pytest.approx(200 * 0.36, rel=0.02)
    for framing, centre in (({"down": 0.15, "across": -0.1}, (64.5, 14.5)), ({"angle": 90.0}, (49.5 + 25, 49.5))):
        found = np.nonzero(framed_mask(image > 0, border=1.0, **framing))
        assert abs(found[0].mean() - 49.5) == pytest.approx(abs(centre[0] - 49.5), abs=1)
        assert found[1].mean() == pytest.approx(centre[1], abs=1)
