import csv
import math

import numpy as np
import pytest

from common.evaluation.segmentation_metrics import score_mask, summarise_scores
from common.evaluation.segmentation_report import choose_examples, image_row, markdown_table, write_image_rows
from common.io.segmentation_classes import GROUPED


def score(overlap, spacing=None, label=1):
    """Two squares of 10 × 10 px, `overlap` columns of which are common: Dice is overlap / 10."""
    masks = np.zeros((2, 20, 40), np.uint8)
    masks[0, 5:15, 5:15] = masks[1, 5:15, 15 - overlap : 25 - overlap] = label
    return score_mask(masks[0], masks[1], 6, spacing)


def test_a_row_holds_the_image_and_leaves_empty_what_does_not_count(tmp_path):
    first = image_row("a.png", {"group": "g"}, score(5), GROUPED)
    assert first["mean_dice"] == first["root_dice"] == pytest.approx(0.5)
    assert first["root_hd95"] == 5 and first["hd95_unit"] == "px"
    assert first["decay_dice"] == first["decay_hd95"] == ""
    write_image_rows([first, image_row("b.png", {}, score(10, (0.1, 0.1), 5), GROUPED)], tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["a.png", "b.png"]
    assert (rows[1]["group"], rows[1]["decay_dice"], rows[1]["root_dice"]) == ("", "1.0", "")


def test_examples_are_the_best_median_and_worst_and_none_twice():
    scores = [score(overlap) for overlap in (3, 9, 1, 5, 7)]
    assert choose_examples(scores, 1) == [("best", 1), ("median", 3), ("worst", 2)]
    chosen = choose_examples(scores, 3)
    assert [index for _, index in chosen] == [1, 4, 3, 0, 2]
    assert choose_examples(scores, 0) == []
    empty = score_mask(np.zeros((4, 4), int), np.zeros((4, 4), int), 6)
    assert choose_examples([empty, scores[0]], 1) == [("worst", 1)], (
        "an image without any class is neither good nor bad"
    )


def test_the_table_has_a_row_for_each_class_and_only_units_that_occur():
    table = markdown_table(summarise_scores([score(10), score(5)], GROUPED))
    lines = table.splitlines()
    assert lines[0] == "| class | images | Dice ↑ | IoU ↑ | pooled IoU ↑ | HD95 (px) ↓ |"
    assert lines[2].startswith(f"| root | 2 | 0.750 ± {math.sqrt(0.125):.3f} | ")
    assert "| decay | 0 | – | – | – | – |" in lines
    assert lines[7].startswith("| mean | 2 | 0.750 | ")
    assert {line.count("|") for line in lines[:8]} == {7}
    both = markdown_table(summarise_scores([score(10), score(5, (0.1, 0.2))], GROUPED)).splitlines()
    assert "HD95 (mm) ↓ | HD95 (px) ↓" in both[0] and both[2].endswith("| 1.0 | 0.0 |")
