from pathlib import Path

import pytest
import torch
from PIL import Image

from common.experiments.lung_masks import LungCase
from common.experiments.lung_report import LABELS, summarise, write_report
from common.experiments.trials import QUICK_WARNING
from common.files import write_json

TUNING = {"num_images": 3}


def result(value, source="clinic"):
    return {"name": "x", "source": source, "dice": dict.fromkeys(LABELS, value), "segments": {"diffseg": 40}}


def case(source):
    return LungCase("patient_7", Path("patient_7.png"), Path("m.png"), source, "visible lung")


def test_means_are_taken_overall_and_per_source():
    summary = summarise([result(0.5), result(0.7), result(0.9, "ward")])
    assert list(summary) == ["all", "clinic", "ward"]
    assert summary["all"]["diffseg"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.2), "n": 3}
    assert summary["ward"]["otsu"] == {"mean": 0.9, "sd": None, "n": 1}


def write(folder, results, cases, quick=False):
    write_json(folder / "settings.json", {"quick": quick})
    return write_report(folder, results, cases, TUNING, torch.device("cpu"))


def test_the_table_has_every_method_the_definition_and_the_command(tmp_path):
    report = write(tmp_path, [result(0.5), result(0.7, "ward")], [case("clinic"), case("ward")])
    text = (tmp_path / "zero_shot_lungs.md").read_text()
    assert all(label in text for label in LABELS.values())
    assert "0.600 ± 0.141" in text and "clinic: visible lung; ward: visible lung" in text and "40 segments" in text
    assert report["provenance"]["command"] in text and QUICK_WARNING not in text
    for file in ("zero_shot_lungs.md", "zero_shot_lungs.json"):
        assert "patient_7" not in (tmp_path / file).read_text()


def test_a_quick_run_says_so(tmp_path):
    write(tmp_path, [result(0.5)], [case("clinic")], quick=True)
    assert (tmp_path / "zero_shot_lungs.md").read_text().startswith(QUICK_WARNING)


def test_the_plot_is_drawn_with_the_sources(tmp_path):
    write(tmp_path, [result(0.5), result(0.7), result(0.9, "ward")], [case("clinic")] * 3)
    assert Image.open(tmp_path / "zero_shot_lungs.png").format == "PNG"
