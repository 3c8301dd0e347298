import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import run_ranks
from monai.inferers import SimpleInferer
from PIL import Image
from torch import nn

from common.data.mask_transforms import CleanUpd, LoadMaskd, PadResized, ToOriginald, clean_up
from common.data.transforms import LoadRadiographd
from common.evaluation.segmentation_evaluation import SegmentationEvaluator, image_row, markdown, segment_and_score
from common.evaluation.segmentation_metrics import score_mask, summarise_scores
from common.io.segmentation_classes import CARIES, GROUPED

SIZES = [(40, 60), (60, 40), (33, 47)]


class Threshold(nn.Module):
    """Bright is caries; only in eval mode."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(100.0))

    def forward(self, image):
        logits = torch.cat([torch.zeros_like(image), self.gain * (image - 0.5)], dim=1)
        return -logits if self.training else logits


class Items:
    """Labelled images of a folder, as a RadiographDataset loads them, each of another size."""

    def __init__(self, folder, shift=0):
        self.items = []
        for number, size in enumerate(SIZES):
            mask = np.zeros(size, np.uint8)
            mask[10:20, 10:30] = 1
            reference = np.roll(mask, number * shift, axis=1)
            Image.fromarray(40 + mask * 200).save(folder / f"{number}.png")
            Image.fromarray(reference).save(folder / f"{number}_mask.png")
            paths = {"image": str(folder / f"{number}.png"), "label": str(folder / f"{number}_mask.png")}
            self.items.append({**paths, "patient_id": f"p{number}", "group": f"g{number}"})

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = LoadMaskd(["label"], CARIES, None)(LoadRadiographd(["image"])(dict(self.items[index])))
        return PadResized(["image"], (80, 120), turn=True)(item)


def score(dataset, **options):
    network = Threshold().train()
    scores = [score for _, score in segment_and_score(network, SimpleInferer(), dataset, CARIES, "cpu", **options)]
    assert network.training, "the mode is given back"
    return scores


def test_a_perfect_segmenter_scores_one_at_the_images_own_size(tmp_path):
    scores = score(Items(tmp_path), with_hd95=True)
    assert [result.confusion.sum() for result in scores] == [rows * columns for rows, columns in SIZES]
    np.testing.assert_allclose([result.dice[0] for result in scores], 1, atol=0.02)
    assert max(result.hd95[0] for result in scores) <= 1


def test_a_shift_of_the_reference_costs_what_it_should(tmp_path):
    scores = score(Items(tmp_path, shift=5), with_hd95=True)
    np.testing.assert_allclose([result.dice[0] for result in scores], [1, 0.75, 0.5], atol=0.03)
    np.testing.assert_allclose([result.hd95[0] for result in scores], [0, 5, 10], atol=1)
    quick = score(Items(tmp_path, shift=5), with_hd95=False)
    assert np.isnan([result.hd95[0] for result in quick]).all()
    assert [result.dice[0] for result in quick] == [result.dice[0] for result in scores]


def test_postprocessing_is_what_is_measured(tmp_path):
    to_original, clean_up = ToOriginald(["pred"]), CleanUpd(["pred"], CARIES, [], {"caries": 10**6})

    def postprocessing(item):
        item = to_original({**item, "pred": item["pred"].softmax(0)})
        return clean_up({**item, "pred": item["pred"].argmax(0, keepdim=True)})

    scores = score(Items(tmp_path), with_hd95=False, postprocessing=postprocessing)
    assert [result.dice[0] for result in scores] == [0, 0, 0]
    assert all(result.confusion[:, 1].sum() == 0 for result in scores)


def test_a_label_that_was_resized_with_its_image_is_refused(tmp_path):
    item = dict(Items(tmp_path)[0])
    item["label"] = torch.zeros(1, 80, 120, dtype=torch.int64)
    with pytest.raises(ValueError):
        list(segment_and_score(Threshold(), SimpleInferer(), [item], CARIES, "cpu", with_hd95=False))


def test_the_evaluation_writes_figures_table_rows_and_pictures(tmp_path):
    out = tmp_path / "out"
    parts = SimpleInferer(), Items(tmp_path, shift=5), CARIES, torch.device("cpu")
    report = SegmentationEvaluator(Threshold(), *parts, str(out), num_examples=1).run()
    assert json.loads((out / "evaluation.json").read_text()) == report
    assert report["n"] == 3 and report["class_table"] == "caries"
    assert report["mean_dice"] == pytest.approx(0.75, abs=0.03)
    assert {"command", "date", "versions", "git", "device", "weights_sha256"} <= report["provenance"].keys()
    with (out / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == ["g0", "g1", "g2"]
    assert np.mean([float(row["caries_dice"]) for row in rows]) == pytest.approx(report["mean_dice"])
    assert rows[0]["path"].endswith("0.png") and rows[0]["hd95_unit"] == "px"
    assert f"| caries | 3 | {report['mean_dice']:.3f} ± " in (out / "table.md").read_text()
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width > 3 * 200 and sheet.height > 3 * 200


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_images_and_write_what_one_does(tmp_path, count):
    data, device = Items(tmp_path, shift=5), torch.device("cpu")

    def evaluate(name):
        SegmentationEvaluator(Threshold(), SimpleInferer(), data, CARIES, device, str(tmp_path / name)).run()

    evaluate("one")
    run_ranks(lambda rank: evaluate("made"), count, tmp_path / "ranks")
    for name in ("per_image.csv", "table.md", "contact_sheet.png"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(ValueError):
        SegmentationEvaluator(Threshold(), SimpleInferer(), [], CARIES, torch.device("cpu"), str(tmp_path)).run()


def overlap(columns, spacing=None, label=1):
    """Score of two squares of 10 × 10 px with so many common columns: Dice is a tenth of them."""
    masks = np.zeros((2, 20, 40), np.uint8)
    masks[0, 5:15, 5:15] = masks[1, 5:15, 15 - columns : 25 - columns] = label
    return score_mask(masks[0], masks[1], 6, spacing)


def test_a_row_leaves_empty_what_does_not_count():
    row = image_row(overlap(5), GROUPED)
    assert row["mean_dice"] == row["root_dice"] == pytest.approx(0.5)
    assert row["root_hd95"] == 5 and row["hd95_unit"] == "px"
    assert row["decay_dice"] is None and row["decay_hd95"] is None
    empty = image_row(score_mask(np.zeros((4, 4), int), np.zeros((4, 4), int), 6), GROUPED)
    assert empty["mean_dice"] is None, "an image without any class is neither good nor bad"


def test_the_table_has_a_row_for_each_class_and_only_units_that_occur():
    lines = markdown(summarise_scores([overlap(10), overlap(5)], GROUPED)).splitlines()
    assert lines[0] == "| class | images | Dice ↑ | IoU ↑ | pooled IoU ↑ | HD95 (px) ↓ |"
    assert lines[2].startswith(f"| root | 2 | 0.750 ± {math.sqrt(0.125):.3f} | ")
    assert "| decay | 0 | – | – | – | – |" in lines
    assert lines[7].startswith("| mean | 2 | 0.750 | ")
    assert {line.count("|") for line in lines[:8]} == {7}
    both = markdown(summarise_scores([overlap(10), overlap(5, (0.1, 0.2))], GROUPED)).splitlines()
    assert "HD95 (mm) ↓ | HD95 (px) ↓" in both[0] and both[2].endswith("| 1.0 | 0.0 |")


# ---- scores of a mask ------------------------------------------------------------------------------------------------


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
