from dataclasses import replace

import numpy as np
import pytest

from common.experiments.lung_choice import (
    ChoiceSettings,
    choose_lungs,
    connected_parts,
    gather,
    pick_by_dice,
    relative_darkness,
    resized,
    tidied,
)
from common.experiments.lung_segments import membership_affinity
from common.experiments.position_prior import EllipsePrior, dice

PRIOR = EllipsePrior(0.5, 0.25, 0.3, 0.18, 0.0)
SIZE, GRID = (64, 64), (32, 32)
PLAIN = ChoiceSettings(pose_association=0, pose_deviation=50, attention=0)
DARK = replace(PLAIN, position=0.0, darkness=1.0, min_area=0.0)


@pytest.fixture
def scene():
    """Lungs as two rectangles, dark, in one segment with a dark rim around the body."""
    lungs = np.zeros(SIZE, bool)
    lungs[17:47, 9:25] = lungs[17:47, 39:55] = True
    labels = np.zeros(SIZE, int)
    labels[lungs] = 1
    labels[:, :3] = labels[:, -3:] = 1
    labels[:10, 20:44] = 2
    return lungs, labels, np.where(labels == 1, 0.2, 0.8)


def chosen(image, labels, settings):
    return choose_lungs(gather(image, labels, membership_affinity(labels, GRID), GRID, PRIOR), settings)


def test_lungs_are_told_from_other_parts_of_their_segment_by_place(scene):
    lungs, labels, image = scene
    assert np.array_equal(chosen(image, labels, PLAIN), lungs)
    assert dice(chosen(image, labels, ChoiceSettings()), lungs) > 0.95  # the defaults find them too


@pytest.mark.parametrize("term", ["darkness", "attention"])
def test_each_term_can_outweigh_place(scene, term):
    lungs, labels, image = scene
    found = chosen(image, labels, replace(PLAIN, position=0.0, **{term: 1.0}))
    assert found[lungs].all() and not found[30, 32]


def test_border_takes_away_symmetry_adds_and_the_bias_moves_all(scene):
    _, labels, image = scene
    assert chosen(image, labels, DARK)[30, 0] and not chosen(image, labels, replace(DARK, border=10.0))[30, 0]
    half = labels.copy()
    half[:, 39:55][half[:, 39:55] == 1] = 3  # a lung that is white
    white = np.where(half == 3, 0.9, image)
    assert not chosen(white, half, DARK)[30, 45] and chosen(white, half, replace(DARK, symmetry=10.0))[30, 45]
    assert chosen(image, labels, replace(PLAIN, bias=100.0)).all()
    assert not chosen(image, labels, replace(PLAIN, bias=-100.0)).any()


def test_picking_by_dice_finds_the_best_union():
    labels = np.repeat(np.arange(6), 10).reshape(6, 10)
    truth = np.zeros((6, 10), bool)
    truth[1:3] = truth[3, :4] = True
    assert np.array_equal(np.unique(labels[pick_by_dice(labels, truth)]), [1, 2])


def test_parts_are_numbered_by_connection():
    parts = connected_parts(np.array([[1, 0, 1], [1, 0, 1]]))
    assert len(np.unique(parts)) == 3 and parts.min() == 0 and parts[0, 0] != parts[0, 2]


def test_darkness_is_relative_to_the_middle_of_the_image():
    image = np.linspace(0, 1, 64)[None].repeat(64, 0)
    dark = relative_darkness(image)
    np.testing.assert_allclose(dark, relative_darkness(0.1 + 0.5 * image), atol=1e-9)
    assert dark[0, 0] > 0 > dark[0, -1]
    assert (relative_darkness(np.full((8, 8), 0.3)) == 0).all()


def test_tidying_fills_holes_and_drops_specks_but_not_the_last():
    mask = np.zeros((20, 20), bool)
    mask[15, 15] = True
    assert np.array_equal(tidied(mask, 0.5), mask) and not tidied(mask & False, 0.01).any()
    mask[2:10, 2:10] = True
    mask[5, 5] = False
    tidy = tidied(mask, 0.01)
    assert tidy[5, 5] and not tidy[15, 15]


def test_resizing_keeps_a_plane():
    plane = np.add.outer(np.arange(4.0), np.arange(4.0))
    assert resized(plane, (8, 8)).mean() == pytest.approx(plane.mean(), abs=1e-6)
    assert np.array_equal(resized(plane, (4, 4)), plane)
