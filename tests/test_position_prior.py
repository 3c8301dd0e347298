import numpy as np
import pytest

from common.experiments.position_prior import EllipsePrior, dice, fit_ellipses


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
