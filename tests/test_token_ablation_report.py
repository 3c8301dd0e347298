import json

import pytest
import torch
from PIL import Image

from common.experiments.experiment import QUICK_WARNING, Experiment, NoResultsError
from common.experiments.token_ablation import Cell, grid
from common.experiments.token_ablation_report import PANEL, label, markdown, rows, write_report

OVERRIDES = {"batch_size": 16, "image_size": 192}
SETTINGS = {"overrides": OVERRIDES, "num_inference_steps": 10, "guidance_scale": 1.5, "quick": True}
VALUES = {"unconditional": 4.0, "cls": 3.0, "cls_registers": 2.5, "cls_grid2": 2.0, "cls_grid4": 1.5}


def result(cell):
    if cell.variant in ("real", "reconstruction"):
        base = 1.0 if cell.variant == "real" else 1.2
        return {"dino_fd_over_floor": base, "ms_ssim_to_source": 0.4, "num_images": 20}
    value = VALUES[cell.variant] + cell.seed / 10
    return {
        **{"dino_fd_over_floor": value, "ms_ssim_to_source": 1 / value, "num_steps": 8, "num_parameters": 1000},
        **{"val_loss": value / 10, "num_tokens": 1, "verdict": "no_sign", "num_images": 20},
    }


@pytest.fixture
def folder(tmp_path):
    variants = {"vits": ["cls", "cls_grid2", "cls_grid4"], "registers": list(VALUES)[1:]}
    Experiment(tmp_path, SETTINGS, result).run(grid(variants, [0, 1]))
    return tmp_path


def test_rows_are_over_seeds_and_differences_are_paired(folder):
    report = write_report(folder, torch.device("cpu"))
    found = {(row["encoder"], row["variant"]): row for row in report["rows"]}
    assert [row["variant"] for row in report["rows"][:3]] == ["real", "reconstruction", "unconditional"]
    assert [row["variant"] for row in report["rows"][3:7]] == list(VALUES)[1:]
    grid4 = found["vits", "cls_grid4"]
    assert grid4["figures"]["dino_fd_over_floor"]["mean"] == pytest.approx(1.55) and grid4["seeds"] == [0, 1]
    assert grid4["to_cls"]["dino_fd_over_floor"]["mean"] == pytest.approx(-1.5)
    assert grid4["to_cls"]["dino_fd_over_floor"]["sd"] == pytest.approx(0, abs=1e-12)
    assert grid4["verdicts"] == {"0": "no_sign", "1": "no_sign"}
    assert "to_cls" not in found["vits", "cls"] and "to_cls" not in found["", "unconditional"]
    assert found["", "real"]["seeds"] == [0], "the baselines are of no seed, and of no encoder"


def test_the_report_is_marked_as_quick_and_says_the_budget(folder):
    report = write_report(folder, torch.device("cpu"))
    text = (folder / "token_ablation.md").read_text()
    assert text.startswith(QUICK_WARNING) and text == QUICK_WARNING + markdown(report)
    assert "| vits | CLS + 4 × 4 | 2 | 1 |" in text, "a number of tokens has no spread"
    assert "1.55 ± 0.07" in text and "-1.50" in text
    assert "8 steps of 16 images of 192 px, 1,000 to 1,000 parameters" in text
    assert "FD-Inception" not in text.split("\n\n")[1], "no column that nobody has"
    assert json.loads((folder / "token_ablation.json").read_text())["rows"] == report["rows"]
    with Image.open(folder / "token_ablation.png") as picture:
        assert picture.size == (2 * PANEL[0], PANEL[1])


def test_variants_of_as_many_tokens_stand_beside_each_other(tmp_path):
    """CLS + 4 registers and CLS + 2 × 2 are 5 tokens both."""
    Experiment(tmp_path, SETTINGS, result).run([Cell("cls_registers", "a"), Cell("cls_grid2", "a")])
    assert [row["variant"] for row in write_report(tmp_path, torch.device("cpu"))["rows"]] == [
        "cls_registers",
        "cls_grid2",
    ]


def test_labels_and_nothing_to_report(tmp_path):
    assert label("cls_grid4") == "CLS + 4 × 4" and label("cls_registers") == "CLS + registers"
    assert rows([]) == []
    with pytest.raises(NoResultsError):
        write_report(tmp_path, torch.device("cpu"))
