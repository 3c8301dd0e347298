from dataclasses import replace

import numpy as np
import pytest
import torch

from common.experiments.chest_atlas import SIDE, ChestAtlas, Pose
from common.experiments.lung_choice import (
    EXCLUDED,
    INCLUDED,
    ChoiceSettings,
    EllipsePrior,
    choose_lungs,
    coordinate_search,
    dice,
    fit_ellipses,
    laid_lungs,
    pick_by_dice,
    tidied,
    tune_method,
)
from common.experiments.lung_segments import (
    OTSU,
    EncodedChest,
    SegmentSettings,
    connected_parts,
    gather,
    likelihood_ratio,
    membership_affinity,
)

SIZE, GRID = (64, 64), (32, 32)
POSE = Pose(0.5, 0.5, 0.5, 0.75)
PLAIN = ChoiceSettings(attention=0, appearance=0, segments=1.0, min_area=0.0)


@pytest.fixture
def atlas():
    """Two rectangles, each three eighths as wide as both lungs and the mediastinum together."""
    lung = np.zeros((SIDE, SIDE), np.uint8)
    lung[4:28, 4:13] = lung[4:28, 19:28] = 255
    rows = tuple(bytes(row).hex() for row in lung)
    return ChestAtlas(rows, rows)


@pytest.fixture
def scene():
    """Lungs as two rectangles, dark, in one segment with a dark rim around the body; the heart's shadow is bright."""
    lungs = np.zeros(SIZE, bool)
    lungs[16:48, 8:25] = lungs[16:48, 39:56] = True
    labels = np.zeros(SIZE, int)
    labels[lungs] = 1
    labels[:, :3] = labels[:, -3:] = 1
    labels[:10, 20:44] = 2
    heart = np.zeros(SIZE, bool)
    heart[32:48, 39:47] = True
    return lungs, labels, np.where((labels == 1) & ~heart, 0.2, 0.8), heart


def chest(image, pose=POSE):
    """Encoded, as it is."""
    pixels = torch.from_numpy(np.asarray(image, np.float32))[None]
    whole = (slice(0, 64), slice(0, 64))
    return EncodedChest(pixels, torch.zeros(1, 1), (1, 1), [torch.full((16,) * 4, 1 / 256)], whole, SIZE, pose)


def gathered(image, labels, atlas):
    return gather(chest(image), labels, membership_affinity(labels, GRID), atlas)


def chosen(image, labels, atlas, settings, heart=INCLUDED):
    return choose_lungs(gathered(image, labels, atlas), settings, heart)


def test_lungs_are_told_from_other_parts_of_their_segment_by_place(scene, atlas):
    lungs, labels, image, _ = scene
    assert np.array_equal(chosen(image, labels, atlas, PLAIN), lungs)
    assert dice(chosen(image, labels, atlas, ChoiceSettings()), lungs) > 0.93  # the defaults find them too


def test_the_hearts_shadow_is_left_out_where_it_is_to_be(scene, atlas):
    lungs, labels, image, heart = scene
    left_out = chosen(image, labels, atlas, PLAIN, EXCLUDED)
    assert dice(left_out, lungs & ~heart) > 0.97 and not left_out[34:46, 41:45].any()
    evidence = gathered(image, labels, atlas)
    assert laid_lungs(evidence, PLAIN, INCLUDED)[40, 43] and not laid_lungs(evidence, PLAIN, EXCLUDED)[40, 43]
    flat = np.full(SIZE, 0.5)  # nothing to tell the heart by: nothing is taken away
    assert np.array_equal(chosen(flat, labels, atlas, PLAIN, EXCLUDED), chosen(flat, labels, atlas, PLAIN))


def test_appearance_and_attention_say_what_place_leaves_open_and_the_bias_moves_all(scene, atlas):
    _, labels, image, _ = scene
    dark = replace(PLAIN, appearance=20.0, segments=0.0)
    assert not chosen(image, labels, atlas, dark)[40, 43] and chosen(image, labels, atlas, dark)[40, 50]
    assert chosen(image, labels, atlas, replace(PLAIN, attention=20.0))[30, 0]  # one segment with the lungs
    assert chosen(image, labels, atlas, replace(PLAIN, bias=100.0)).all()
    assert chosen(image, labels, atlas, replace(PLAIN, bias=-100.0)).sum() == 0


def test_segments_decide_as_a_whole_as_far_as_they_are_to(scene, atlas):
    _, _, image, _ = scene
    labels = np.zeros(SIZE, int)
    labels[12:48, 8:25] = labels[12:48, 39:56] = 1  # lungs that reach a little higher than the atlas has them
    assert chosen(image, labels, atlas, PLAIN)[13, 15]
    assert not chosen(image, labels, atlas, replace(PLAIN, segments=0.0))[13, 15]


def test_the_likelihood_ratio_is_that_of_the_grey_values():
    grey = np.repeat([[0.2], [0.8]], 32, axis=0).repeat(32, 1)
    ratio = likelihood_ratio(grey, (grey < 0.5).astype(float), np.ones(grey.shape, bool))
    assert ratio[0, 0] > 2 and ratio[-1, 0] < -2
    assert not likelihood_ratio(grey, np.zeros(grey.shape), np.zeros(grey.shape, bool)).any()


def test_picking_by_dice_finds_the_best_union():
    labels = np.repeat(np.arange(6), 10).reshape(6, 10)
    truth = np.zeros((6, 10), bool)
    truth[1:3] = truth[3, :4] = True
    assert np.array_equal(np.unique(labels[pick_by_dice(labels, truth)]), [1, 2])


def test_parts_are_numbered_by_connection():
    parts = connected_parts(np.array([[1, 0, 1], [1, 0, 1]]))
    assert len(np.unique(parts)) == 3 and parts.min() == 0 and parts[0, 0] != parts[0, 2]


def test_tidying_fills_holes_and_drops_specks_but_not_the_last():
    mask = np.zeros((20, 20), bool)
    mask[15, 15] = True
    assert np.array_equal(tidied(mask, 0.5), mask) and not tidied(mask & False, 0.01).any()
    mask[2:10, 2:10] = True
    mask[5, 5] = False
    tidy = tidied(mask, 0.01)
    assert tidy[5, 5] and not tidy[15, 15]


# ---- what is tuned on training masks ---------------------------------------------------------------------------------


def test_each_field_goes_to_its_best_candidate_and_stays_where_nothing_is_better():
    grid = {"bias": (-1.0, 1.0, 2.0), "segments": (3.0, 4.0)}
    start = ChoiceSettings()
    found = coordinate_search(start, grid, lambda each: -((each.bias - 1) ** 2) - (each.segments - 4) ** 2, "test")
    assert found == (replace(start, bias=1.0, segments=4.0), 0)
    assert coordinate_search(start, grid, lambda _: 0.5, "test") == (start, 0.5)


def test_tuning_learns_from_training_masks():
    """An atlas that leaves everything open, and dark lungs: the search finds out what tells them."""
    truth = np.zeros(SIZE, bool)
    truth[8:30, 6:24] = truth[8:30, 40:58] = True
    lung = np.full((SIDE, SIDE), 120, np.uint8)
    lung[:, 13:19] = 100
    atlas = ChestAtlas(("80" * SIDE,) * SIDE, tuple(bytes(row).hex() for row in lung))
    encoded = chest(np.where(truth, 0.2, 0.8), Pose(0.3, 0.5, 0.45, 0.85))
    start = SegmentSettings(), ChoiceSettings(attention=0.0, appearance=0.0, bias=-4.0)
    _, choice, after = tune_method(OTSU, [encoded], [(truth, INCLUDED)], atlas, start, rounds=2)
    assert after > 0.95 and choice.bias > -1


# ---- ellipses --------------------------------------------------------------------------------------------------------


def test_the_two_ellipses_are_mirror_images_of_known_area_and_centre_and_tilt_inwards():
    mask = EllipsePrior(tilt=0.2).mask((60, 60))
    assert np.array_equal(mask, mask[:, ::-1])
    rows, columns = np.nonzero(mask[:, :30])
    assert columns[rows < 20].mean() > columns[rows > 38].mean() + 1
    left = EllipsePrior(0.5, 0.25, 0.3, 0.2, 0.0).mask((200, 100))[:, :50]
    assert left.sum() == pytest.approx(np.pi * 0.3 * 200 * 0.2 * 100, rel=0.01)
    rows, columns = np.nonzero(left)
    assert (rows.mean(), columns.mean()) == (pytest.approx(99.5), pytest.approx(24.5))


def test_the_fit_finds_the_ellipses_of_masks_by_their_dice():
    one, other = np.array([[True, True, False]]), np.array([[False, True, True]])
    assert dice(one, other) == 0.5 and dice(one, one) == 1 and dice(one & False, other & False) == 1
    true = EllipsePrior(0.42, 0.24, 0.3, 0.16, 0.1)
    found = fit_ellipses([true.mask((48, 48))])
    assert dice(found.mask((48, 48)), true.mask((48, 48))) > 0.98
