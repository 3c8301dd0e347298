import json

import pytest
import torch
from dental_data import TINY, write_labelled_folder

from common.experiments.experiment import QUICK_WARNING, Experiment
from common.experiments.label_efficiency import Cell, FineTuning, grid, mixed
from common.experiments.label_efficiency_report import labels_needed, markdown, rows, write_report


def test_half_of_the_mixed_items_are_labelled_ones_and_each_kind_has_its_own_mask_values():
    labelled = [
        {"image": name, "label": f"{name}.png", "mask_values": "periapical", "patient_id": name} for name in "ab"
    ]
    extra = [{"image": str(number), "label": "m.png", "mask_values": "labels"} for number in range(5)]
    items = mixed(labelled, extra)
    assert [item["image"] for item in items[::2]] == ["a", "b", "a", "b", "a"]
    assert [item["image"] for item in items[1::2]] == ["0", "1", "2", "3", "4"]
    assert [item["mask_values"] for item in items[:2]] == ["periapical", "labels"]
    assert len({frozenset(item) for item in items}) == 1  # a batch may hold both kinds
    assert mixed(labelled, []) == labelled


def test_members_of_an_ensemble_share_the_subset_and_nothing_else_that_is_random():
    first, other = Cell("ddpm", 5, 3), Cell("ddpm", 5, 3, member=1)
    assert first.training_seed == 3 != other.training_seed < 2**31
    assert first.name != other.name and first.seed == other.seed


def flat(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_a_cell_is_a_run_of_train_yaml_and_depends_on_its_seed_alone(tmp_path, repository):
    write_labelled_folder(tmp_path / "data", 6)
    overrides = {"image_size": [48, 64], "amp": False, **{f"network_def#{key}": value for key, value in TINY.items()}}
    bundle = repository / "bundles" / "dental_radiograph_segmentation"
    first, second, third = (
        FineTuning(bundle, str(tmp_path / "data"), tmp_path / name, {"none": "none"}, 2, overrides) for name in "abc"
    )
    cell = Cell("none", 2, 3)
    network = first(cell)
    assert torch.equal(flat(network), flat(second(cell))) and not network.training
    assert not torch.equal(flat(network), flat(first(Cell("none", 2, 4))))
    assert not torch.equal(flat(network), flat(third(cell, extra=train_items(tmp_path / "data"))))
    (kept,) = (tmp_path / "a" / "runs").glob(f"{cell.name}_*/*.pt")
    torch.save({key: value + 1 for key, value in network.state_dict().items()}, kept)
    assert torch.equal(flat(first(cell)), flat(network) + 1), "a network that is there is not trained again"
    longer = FineTuning(bundle, str(tmp_path / "data"), tmp_path / "a", {"none": "none"}, 3, overrides)
    assert longer.run_dir(cell) != first.run_dir(cell), "a network of other settings is not taken"
    with pytest.raises(ValueError, match="expected one of none"):
        first(Cell("ddpm", 2, 0))


def train_items(folder):
    image, mask = folder / "images" / "tooth_3.png", folder / "masks" / "tooth_3.png"
    return [{"image": str(image), "label": str(mask), "mask_values": "periapical"}]


CELLS = {
    ("none", 1): (0.10, 0.20),
    ("none", 10): (0.30, 0.40),
    ("ddpm", 1): (0.20, 0.40),
    ("ddpm", 10): (0.50, 0.50),
}


def results():
    return [
        (Cell(method, budget, seed), {"mean_pooled_iou": value, "mean_dice": value})
        for (method, budget), values in CELLS.items()
        for seed, value in enumerate(values)
    ]


def test_gains_are_paired_by_seed():
    found = {(row["method"], row["label_budget"]): row for row in rows(results())}
    assert found["ddpm", 1]["mean"] == pytest.approx(0.3) and found["ddpm", 1]["n"] == 2
    assert found["ddpm", 1]["sd"] == pytest.approx(0.02**0.5)
    assert found["ddpm", 1]["gain"]["mean"] == pytest.approx(0.15)
    assert found["ddpm", 1]["gain"]["sd"] == pytest.approx(0.005**0.5)
    only_one = [pair for pair in results() if pair[0] != Cell("none", 10, 1)]
    (row,) = (r for r in rows(only_one) if (r["method"], r["label_budget"]) == ("ddpm", 10))
    assert row["gain"]["n"] == 1 and row["gain"]["mean"] == pytest.approx(0.2)


def test_what_adds_to_a_method_is_compared_with_it():
    added = [(Cell("ddpm_generated", 10, 0), {"mean_pooled_iou": 0.46, "mean_dice": 0.5})]
    found = rows([*results(), *added])
    row = found[-1]
    assert row["gain"]["mean"] == pytest.approx(0.16) and row["own_gain"]["mean"] == pytest.approx(-0.04)
    assert all("own_gain" not in other for other in found[:-1])
    text = markdown({"rows": found, "timesteps": []})
    assert "Difference to DDPM, likewise" in text and "| DDPM + generated labels |  | -4.0 |" in text
    assert "likewise" not in markdown({"rows": found[:-1], "timesteps": []})


def test_labels_that_random_initialisation_needs():
    needed = dict(labels_needed(rows(results()), "ddpm"))
    # 0.30 lies three quarters of the way from 0.15 at 1 label to 0.35 at 10, on the logarithmic axis
    assert needed[1] == pytest.approx(10**0.75)
    assert needed[10] is None


def test_the_report_is_written_from_what_is_there(tmp_path):
    def do(cell):
        value = CELLS[cell.method, cell.label_budget][cell.seed] if cell.label_budget < 20 else 0.25
        return {"mean_pooled_iou": value, "mean_dice": value}

    cells = grid(["none", "ddpm"], [1, 10], [0, 1]) + grid(["ddpm"], [20], [0], [1, 50])
    Experiment(tmp_path, {"num_steps": 2, "quick": True}, do).run(cells)
    write_report(tmp_path, torch.device("cpu"))
    report = json.loads((tmp_path / "label_efficiency.json").read_text())
    text = (tmp_path / "label_efficiency.md").read_text()
    assert "| DDPM | 30.0 ± 14.1 | 50.0 ± 0.0 | 25.0 |" in text
    assert "| DDPM | +15.0 ± 7.1 | +15.0 ± 7.1 |  |" in text
    assert text == QUICK_WARNING + markdown(report)
    assert [row["timestep"] for row in report["timesteps"]] == [1, 50]
    assert (tmp_path / "label_efficiency.png").stat().st_size > 1000
