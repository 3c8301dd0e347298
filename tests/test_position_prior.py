import numpy as np
import pytest

from common.experiments.lung_segments import membership_affinity
from common.experiments.position_prior import (
    COARSE,
    POSES,
    USUAL,
    EllipsePrior,
    Pose,
    dice,
    fit_ellipses,
    pose_evidence,
    pose_weights,
    posed_probability,
)

PRIOR = EllipsePrior()
TRUE = Pose(0.04, -0.06, 0.9, 0.87)
GRID = (32, 32)


def test_the_two_ellipses_are_mirror_images_of_known_area_and_centre_and_tilt_inwards():
    mask = EllipsePrior(tilt=0.2).mask((60, 60))
    assert np.array_equal(mask, mask[:, ::-1])
    rows, columns = np.nonzero(mask[:, :30])
    assert columns[rows < 20].mean() > columns[rows > 38].mean() + 1
    left = EllipsePrior(0.5, 0.25, 0.3, 0.2, 0.0).mask((200, 100))[:, :50]
    assert left.sum() == pytest.approx(np.pi * 0.3 * 200 * 0.2 * 100, rel=0.01)
    rows, columns = np.nonzero(left)
    assert (rows.mean(), columns.mean()) == (pytest.approx(99.5), pytest.approx(24.5))


def test_a_pose_shifts_and_scales():
    prior = EllipsePrior(0.5, 0.2, 0.2, 0.1, 0.0)
    usual, posed = prior.mask((200, 200)), prior.mask((200, 200), Pose(column=0.05, row=-0.1, width=1.2, height=1.3))
    assert np.mean(np.nonzero(posed), axis=1) - np.mean(np.nonzero(usual), axis=1) == pytest.approx([-20, 10])
    assert posed.sum() / usual.sum() == pytest.approx(1.2 * 1.3, rel=0.02)
    assert USUAL in POSES and USUAL.deviation() == 0 < min(p.deviation() for p in POSES if p != USUAL)


def test_probability_is_a_half_on_the_outline():
    probability = PRIOR.probability((80, 80), 0.1)
    assert np.array_equal(probability > 0.5, PRIOR.mask((80, 80)))
    assert probability.max() > 0.99 and probability.min() < 0.01


def test_the_fit_finds_the_ellipses_of_masks_by_their_dice():
    one, other = np.array([[True, True, False]]), np.array([[False, True, True]])
    assert dice(one, other) == 0.5 and dice(one, one) == 1 and dice(one & False, other & False) == 1
    true = EllipsePrior(0.42, 0.24, 0.3, 0.16, 0.1)
    found = fit_ellipses([true.mask((48, 48))])
    assert dice(found.mask((48, 48)), true.mask((48, 48))) > 0.98


def test_structure_tells_the_pose():
    """Lungs in an unusual pose attend to lungs, the rest to the rest."""
    affinity = membership_affinity(PRIOR.mask(GRID, TRUE).astype(int), GRID)
    evidence = pose_evidence(PRIOR, affinity, np.zeros(GRID))
    best = int(evidence[0].argmax())
    assert POSES[best] == TRUE and evidence[0][best] == pytest.approx(2, abs=1e-4)
    weights = pose_weights(evidence, association=200, contrast=0, deviation=0)
    assert weights.sum() == pytest.approx(1) and weights.argmax() == best
    posed = posed_probability(PRIOR, weights, 0.05) > 0.5
    truth = PRIOR.mask(COARSE, TRUE)
    assert dice(posed, truth) > 0.95 > 0.9 > dice(PRIOR.mask(COARSE), truth)


def test_darkness_tells_the_pose_too_and_without_evidence_the_usual_one_is_likeliest():
    darkness = np.where(PRIOR.mask(GRID, TRUE), 1.0, -1.0)
    evidence = pose_evidence(PRIOR, np.full((1024, 1024), 1 / 1024), darkness)
    assert np.ptp(evidence[0]) < 1e-3
    assert POSES[int(pose_weights(evidence, 0, 50, 0).argmax())] == TRUE
    assert POSES[int(pose_weights(evidence, 0, 0, 0.5).argmax())] == USUAL
