import json
import math

import numpy as np
import pytest

from common.data.mask_transforms import clean_up
from common.evaluation.segmentation_metrics import score_mask, summarise_scores
from common.io.segmentation_classes import CARIES, GROUPED


def square(top, left, side=10, label=1, size=(40, 60)):
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, left : left + side] = label
    return mask


def test_half_overlapping_squares():
    score = score_mask(square(5, 5), square(5, 10), num_labels=2)
    assert score.dice[0] == pytest.approx(0.5)  # 2 · 50 / 200
    assert score.iou[0] == pytest.approx(1 / 3)  # 50 / 150
    assert score.confusion.tolist() == [[2250, 50], [50, 50]]


def test_a_class_absent_from_both_does_not_count_and_one_absent_from_either_costs():
    prediction, reference = square(0, 0, label=1) + square(20, 20, label=2), square(0, 0, label=1)
    score = score_mask(prediction, reference, num_labels=4)
    np.testing.assert_array_equal(score.dice, [1, 0, np.nan])
    np.testing.assert_array_equal(score.iou, [1, 0, np.nan])
    np.testing.assert_array_equal(score.hd95, [0, np.nan, np.nan])
    other = score_mask(reference, prediction, num_labels=4)
    np.testing.assert_array_equal(other.dice, score.dice)
    np.testing.assert_array_equal(other.confusion, score.confusion.T)


@pytest.mark.parametrize(
    ("one", "other", "spacing", "distance"),
    [
        (square(5, 5), square(5, 5), None, 0.0),
        # Of 36 outline pixels of a square moved by 5 columns, 10 are 5 columns away from the other and none is further.
        (square(5, 5), square(5, 10), None, 5.0),
        (square(5, 5), square(5, 10), (1.0, 0.1), 0.5),
        (square(5, 5), square(10, 5), (1.0, 0.1), 5.0),
        # The far edge, 10 of 36 outline pixels, is 30 rows away.
        (square(0, 0), square(30, 0), None, 30.0),
        (square(0, 0), square(30, 0), (0.5, 0.1), 15.0),
        # Directed distances 0 and {0, 17}; the 95th percentile lies linearly between: 0.95 · 17.
        (square(4, 3, 1), square(4, 3, 1) + square(4, 20, 1), None, 16.15),
        (square(4, 3, 1), square(4, 3, 1) + square(4, 20, 1), (3.0, 0.1), 1.615),
    ],
)
def test_hd95_of_hand_computed_cases(one, other, spacing, distance):
    for first, second in ((one, other), (other, one)):
        score = score_mask(first, second, 2, spacing)
        assert score.hd95[0] == pytest.approx(distance, abs=1e-5)
        assert score.hd95_unit == ("mm" if spacing else "px")


def test_hd95_sees_each_class_by_itself_and_can_be_left_out():
    prediction, reference = (square(5, left, label=1) + square(20, 40, label=2) for left in (5, 8))
    full, quick = score_mask(prediction, reference, 3), score_mask(prediction, reference, 3, with_hd95=False)
    np.testing.assert_allclose(full.hd95, [3, 0])
    assert np.isnan(quick.hd95).all() and quick.hd95_unit == "px"
    assert np.array_equal([quick.dice, quick.iou], [full.dice, full.iou])
    assert np.array_equal(quick.confusion, full.confusion)


@pytest.mark.parametrize("reference", [square(0, 0, size=(40, 61)), square(0, 0, label=3)])
def test_masks_that_cannot_be_compared_are_refused(reference):
    with pytest.raises(ValueError):
        score_mask(square(0, 0), reference, 3)


def test_the_summary_weighs_classes_equally_and_counts_what_is_there():
    reference = square(0, 0, label=1)
    scores = [
        score_mask(square(0, 0, label=1), reference, 6),  # root: Dice 1
        score_mask(square(0, 5, label=1), reference, 6),  # root: Dice 0.5, IoU 1/3
        score_mask(square(0, 0, label=5), square(0, 0, label=5), 6, (0.1, 0.1)),  # decay: Dice 1
    ]
    summary = summarise_scores(scores, GROUPED)
    root, decay = summary["classes"]["root"], summary["classes"]["decay"]
    assert root["dice"] == {"mean": pytest.approx(0.75), "sd": pytest.approx(math.sqrt(0.125)), "n": 2}
    assert decay["dice"] == {"mean": 1.0, "sd": None, "n": 1}
    assert summary["classes"]["canal"]["dice"] == {"mean": None, "sd": None, "n": 0}
    assert summary["classes"]["canal"]["pooled_iou"] is None
    assert summary["mean_dice"] == pytest.approx((0.75 + 1) / 2)
    assert summary["mean_iou"] == pytest.approx((2 / 3 + 1) / 2)
    assert root["pooled_iou"] == pytest.approx(150 / 250)
    assert summary["mean_pooled_iou"] == pytest.approx((0.6 + 1) / 2)
    assert summary["images"]["dice"]["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert root["hd95_px"]["mean"] == pytest.approx(2.5) and root["hd95_mm"]["n"] == 0
    assert decay["hd95_mm"] == {"mean": 0.0, "sd": None, "n": 1} and decay["hd95_px"]["n"] == 0
    assert summary["n"] == 3
    json.dumps(summary, allow_nan=False)
    with pytest.raises(ValueError):
        summarise_scores([], CARIES)


def test_only_the_largest_component_stays_where_asked():
    mask = square(2, 2, 4) + square(20, 20, 6) + square(30, 50, 5, label=2) + square(2, 40, 3, label=2)
    cleaned = clean_up(mask, keep_largest=[1])
    np.testing.assert_array_equal(cleaned, mask - square(2, 2, 4))
    assert mask[3, 3] == 1  # the argument is left as it was
    assert np.array_equal(clean_up(mask), mask) and not clean_up(np.zeros((4, 4), int), keep_largest=[1]).any()


def test_small_components_go_by_their_area_and_diagonal_pixels_are_one_component():
    mask = square(2, 2, 2) + square(4, 4, 2) + square(20, 20, 2)
    assert np.array_equal(clean_up(mask, min_area_px={1: 5}), square(2, 2, 2) + square(4, 4, 2))
    assert np.array_equal(clean_up(mask, min_area_px={1: 8}), square(2, 2, 2) + square(4, 4, 2))
    assert not clean_up(mask, min_area_px={1: 9}).any()
    assert np.array_equal(clean_up(mask, min_area_px={2: 9}), mask)
    assert not clean_up(mask, keep_largest=[1], min_area_px={1: 9}).any()
