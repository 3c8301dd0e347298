import csv
import json
import math

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from PIL import Image
from torch import nn

from common.data.mask_transforms import CleanUpd, LoadMaskd, PadResized, ToOriginald
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
