import math

import numpy as np

from common.evaluation.histograms import histograms


def test_histograms_draw_both_sets_and_the_threshold():
    rng = np.random.default_rng(0)
    picture = np.asarray(histograms([("a", rng.normal(size=200), rng.normal(3, 1, size=100), -1.0)]))
    assert picture.shape == (240, 960, 3)
    grey, blue, red = (
        np.flatnonzero((picture == colour).all(2).any(0)) for colour in ((187, 187, 187), (31, 79, 216), (208, 32, 32))
    )
    assert len(red) == 1 and grey.min() < red[0] < np.median(grey) < np.median(blue)
    assert math.isclose(blue.max() - grey.min(), 400, abs_tol=4)
