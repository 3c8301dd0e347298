import pytest
import torch
from conftest import draw_radiographs
from tiny_ablation import tiny_training

from common.experiments.experiment import ExperimentError
from common.experiments.token_ablation import (
    CLS,
    EVERY_SAMPLE,
    RECONSTRUCTION,
    UNCONDITIONAL,
    Cell,
    grid,
    some_radiographs,
    token_selection,
    token_variants,
)
from common.training.denoising_step import checked_share, context_drop


@pytest.fixture(scope="module")
def training(tmp_path_factory, tiny_dino):
    return tiny_training(tmp_path_factory.mktemp("ablation"), tiny_dino)


def flat(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


@pytest.mark.parametrize(
    ("registers", "expected"),
    [
        (0, {"cls": 1, "cls_grid2": 5, "cls_grid4": 17}),
        (2, {"cls": 1, "cls_registers": 3, "cls_grid2": 5, "cls_grid4": 17}),
    ],
)
def test_an_encoder_has_a_variant_with_registers_only_where_it_has_registers(registers, expected):
    names = token_variants(registers, (4, 2))
    assert {name: token_selection(name).num_tokens(registers) for name in names} == expected
    assert names == list(expected), "fewest tokens first"


@pytest.mark.parametrize("name", ["cls_grid", "cls_grid0", "cls_gridx", "patches"])
def test_an_unknown_variant_is_told(name):
    with pytest.raises(ExperimentError, match="expected cls, cls_registers, cls_grid2"):
        token_selection(name)


def test_a_stopped_experiment_leaves_whole_seeds():
    cells = grid({"a": ["cls", "cls_grid2"], "b": ["cls"]}, [3, 4])
    assert cells[:2] == [Cell("real", "a"), Cell("reconstruction", "a")]
    first = [("cls", "a"), ("cls_grid2", "a"), ("cls", "b"), ("unconditional", "a")]
    assert cells[2:6] == [Cell(variant, encoder, 3) for variant, encoder in first]
    assert {cell.seed for cell in cells[6:]} == {4} and len({cell.name for cell in cells}) == len(cells)
    assert UNCONDITIONAL not in {cell.variant for cell in grid({"a": ["cls"]}, [0], unconditional=False)}


def test_subsets_are_nested_and_keep_the_order(tmp_path):
    draw_radiographs(tmp_path / "data", 12, 32)
    knobs = {"dataset_dir": str(tmp_path / "data"), "val_fraction": 0.25, "report_dir": tmp_path, "seed": 1}
    knobs["max_unreadable_share"] = 0.5
    few, more, everything = (
        [item["image"] for item in some_radiographs("train", {"train": number, "val": 1}, **knobs)]
        for number in (3, 6, None)
    )
    assert len(few) == 3 and len(more) == 6 and set(few) < set(more) < set(everything)
    assert everything == sorted(everything) and [name for name in everything if name in few] == few


def test_all_variants_have_one_budget_one_store_and_one_start(training):
    variants = [UNCONDITIONAL, *token_variants(training.facts("tiny").num_register_tokens, (2, 4))]
    trained = {name: training(Cell(name, "tiny")) for name in variants}
    assert {name: found.about["num_tokens"] for name, found in trained.items()} == {
        **{UNCONDITIONAL: 0, "cls": 1, "cls_registers": 3, "cls_grid2": 5, "cls_grid4": 17}
    }
    assert {found.about["num_steps"] for found in trained.values()} == {4}
    assert len({found.about["val_loss"] for found in trained.values()}) == len(trained)
    unets = {name: sum(p.numel() for p in found.denoiser.unet.parameters()) for name, found in trained.items()}
    assert len(set(unets.values())) == 1
    for found in trained.values():  # all but two vectors a token
        extra = 2 * 8 * (max(found.about["num_tokens"], 1) - 1)
        assert found.about["num_parameters"] == trained[CLS].about["num_parameters"] + extra
    assert len(list((training.work_dir / "stores").iterdir())) == 1
    store, _ = training.store_and_codec("tiny")
    assert store.arrays["patch_grid"].shape == (7, 1, 4, 4, 16)


def test_the_unconditional_denoiser_sees_no_token():
    assert checked_share(EVERY_SAMPLE) == EVERY_SAMPLE
    assert context_drop(list(range(2000)), 3, EVERY_SAMPLE).all()


def test_a_trained_cell_is_taken_and_a_killed_one_goes_on_from_its_checkpoint(training, tmp_path, tiny_dino):
    cell = Cell(CLS, "tiny", seed=1)
    whole = training(cell)
    kept = training.run_dir(cell) / "network.pt"
    stamp = kept.stat().st_mtime_ns
    assert torch.equal(flat(training(cell).denoiser), flat(whole.denoiser)) and kept.stat().st_mtime_ns == stamp
    assert not torch.equal(flat(training(Cell(CLS, "tiny")).denoiser), flat(whole.denoiser))

    other = tiny_training(tmp_path, tiny_dino)
    workflow = other.workflow(cell, other.run_dir(cell))
    workflow.initialize()
    workflow.run()  # as by a kill between the last step and keeping the network
    workflow.finalize()
    again = other(cell)
    assert torch.equal(flat(again.denoiser), flat(whole.denoiser)) and again.about == whole.about
    assert [path.name for path in other.run_dir(cell).glob("*.pt")] == ["network.pt"]


def test_other_settings_have_other_folders(training, tmp_path, tiny_dino):
    cell = Cell(CLS, "tiny")
    longer = tiny_training(training.work_dir.parent, tiny_dino, overrides={**training.overrides, "max_epochs": 3})
    assert longer.run_dir(cell) != training.run_dir(cell) and longer.store_dir("tiny") == training.store_dir("tiny")
    more = tiny_training(training.work_dir.parent, tiny_dino, num_images={"train": 5, "val": 3})
    assert more.store_dir("tiny") != training.store_dir("tiny")
    with pytest.raises(ExperimentError, match="expected one of tiny"):
        training.facts("huge")
    with pytest.raises(ExperimentError, match="at least 1"):
        tiny_training(tmp_path, tiny_dino, patch_grids=(0, 2))


def test_baselines_are_not_trained():
    assert not any(cell.seed for cell in grid({"a": [CLS]}, [5]) if cell.variant == RECONSTRUCTION)
