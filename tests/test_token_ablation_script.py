"""The command on phantoms: every variant, stopped, gone on, reported."""

import importlib.util
import json

import pytest
from conftest import REPOSITORY, draw_radiographs
from tiny_ablation import CHANNELS, SIZE, tiny_overrides

from common.experiments.experiment import QUICK_WARNING, ExperimentError, read_cells
from common.experiments.token_ablation import Cell

SCRIPT = REPOSITORY / "scripts" / "token_ablation.py"
VARIANTS = ["real", "reconstruction", "unconditional", "cls", "cls_registers", "cls_grid2", "cls_grid4"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("token_ablation_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("command")
    draw_radiographs(root / "data", 40, SIZE)
    return root


def run(script, folder, dino, **options):
    options = {
        **{"output_dir": str(folder / "out"), "work_dir": str(folder / "work"), "encoders": {"tiny": str(dino)}},
        **{"image_size": SIZE, "channels": CHANNELS, "num_diverse_sources": 2},
        **{"overrides": {**tiny_overrides(folder), "val_fraction": 0.5}, "quick": True},
        **options,
    }
    script.token_ablation(str(folder / "data"), **options)


@pytest.fixture(scope="module")
def finished(script, folder, tiny_dino):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "QUICK_IMAGES", 20)
        patch.setattr(script, "QUICK_SAMPLING_STEPS", 1)
        run(script, folder, tiny_dino)
        yield folder


def test_every_variant_is_measured_at_one_budget_and_reported(finished):
    found = {cell.variant: result for cell, result in read_cells(finished / "out", Cell)}
    assert sorted(found) == sorted(VARIANTS)
    trained = {name: found[name] for name in VARIANTS[2:]}
    assert len({(result["num_steps"], result["num_images"]) for result in trained.values()}) == 1
    assert [result["num_tokens"] for result in trained.values()] == [0, 1, 3, 5, 17]
    keys = {"dino_fd_over_floor", "ms_ssim_between_variations", "cosine_to_source", "flagged", "copies_source"}
    assert all(keys < set(result) for result in trained.values())
    text = (finished / "out" / "token_ablation.md").read_text()
    assert text.startswith(QUICK_WARNING) and "CLS + registers" in text and "CLS + 4 × 4" in text
    assert (finished / "out" / "token_ablation.png").stat().st_size > 1000


def test_what_is_kept_names_no_patient_and_no_path(finished):
    kept = [path for path in (finished / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".json", ".md", ".png"} and len(kept) == len(VARIANTS) + 4
    for path in kept:
        if path.suffix != ".png":
            assert "phantom_" not in path.read_text() and str(finished) not in path.read_text()
    cell = json.loads((finished / "out" / "cells" / "tiny_cls_seed0.json").read_text())
    assert len(cell["encoder_sha256"]) == 64


def test_a_missing_cell_is_done_again_alone_and_alike(finished, script, tiny_dino):
    cells = finished / "out" / "cells"
    missing = cells / "tiny_cls_grid2_seed0.json"
    before = missing.read_text()
    missing.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in cells.iterdir()}
    run(script, finished, tiny_dino, judge=str(tiny_dino))  # the same encoder by another name, with a store of its own
    assert missing.read_text() == before
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_other_settings_and_mistakes_are_told(finished, script, tiny_dino):
    with pytest.raises(ExperimentError, match="learning_rate"):
        run(script, finished, tiny_dino, learning_rate=0.5)
    with pytest.raises(ExperimentError, match="quotes and all"):
        run(script, finished, tiny_dino, encoders="{tiny: a/b}")
