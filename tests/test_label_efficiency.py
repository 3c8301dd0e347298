import json

import pytest
import torch
from dental_data import TINY, write_labelled_folder

from common.errors import SettingsError
from common.experiments.label_efficiency import FineTuning, Trial, grid
from common.experiments.label_efficiency_report import STEM, labels_needed, markdown, rows, write_report
from common.experiments.trials import QUICK_WARNING, Experiment


def flat(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_a_trial_is_a_run_of_train_yaml_and_depends_on_its_seed_alone(tmp_path, repository):
    write_labelled_folder(tmp_path / "data", 6)
    overrides = {"image_size": [48, 64], "amp": False, **{f"network_def#{key}": value for key, value in TINY.items()}}
    bundle = repository / "bundles" / "dental_radiograph_segmentation"
    first, second = (
        FineTuning(str(bundle), str(tmp_path / "data"), tmp_path / name, {"none": "none"}, 2, overrides)
        for name in "ab"
    )
    trial = Trial("none", 2, 3)
    network = first(trial)
    assert torch.equal(flat(network), flat(second(trial))) and not network.training
    assert not torch.equal(flat(network), flat(first(Trial("none", 2, 4))))
    (kept,) = (tmp_path / "a" / "runs").glob("none_n2_seed3_t1_*/*.pt")
    torch.save({key: value + 1 for key, value in network.state_dict().items()}, kept)
    assert torch.equal(flat(first(trial)), flat(network) + 1), "a network that is there is not trained again"
    longer = FineTuning(str(bundle), str(tmp_path / "data"), tmp_path / "a", {"none": "none"}, 3, overrides)
    assert longer.run_dir(trial) != first.run_dir(trial), "a network of other settings is not taken"
    with pytest.raises(SettingsError):
        first(Trial("ddpm", 2, 0))


VALUES = {
    ("none", 1): (0.10, 0.20),
    ("none", 10): (0.30, 0.40),
    ("ddpm", 1): (0.20, 0.40),
    ("ddpm", 10): (0.50, 0.50),
}


def results():
    return [
        (Trial(method, budget, seed), {"mean_pooled_iou": value, "mean_dice": value})
        for (method, budget), values in VALUES.items()
        for seed, value in enumerate(values)
    ]


def test_gains_are_paired_by_seed():
    found = {(row["method"], row["label_budget"]): row for row in rows(results())}
    assert found["ddpm", 1]["mean"] == pytest.approx(0.3) and found["ddpm", 1]["n"] == 2
    assert found["ddpm", 1]["sd"] == pytest.approx(0.02**0.5)
    assert found["ddpm", 1]["gain"]["mean"] == pytest.approx(0.15)
    assert found["ddpm", 1]["gain"]["sd"] == pytest.approx(0.005**0.5)
    only_one = [pair for pair in results() if pair[0] != Trial("none", 10, 1)]
    (row,) = (r for r in rows(only_one) if (r["method"], r["label_budget"]) == ("ddpm", 10))
    assert row["gain"]["n"] == 1 and row["gain"]["mean"] == pytest.approx(0.2)


def test_labels_that_random_initialisation_needs():
    needed = dict(labels_needed(rows(results()), "ddpm"))
    # 0.30 lies three quarters of the way from 0.15 at 1 label to 0.35 at 10, on the logarithmic axis
    assert needed[1] == pytest.approx(10**0.75)
    assert needed[10] is None


def test_the_report_is_written_from_what_is_there(tmp_path):
    def do(trial):
        value = VALUES[trial.method, trial.label_budget][trial.seed] if trial.label_budget < 20 else 0.25
        return {"mean_pooled_iou": value, "mean_dice": value}

    trials = grid(["none", "ddpm"], [1, 10], [0, 1]) + grid(["ddpm"], [20], [0], [1, 50])
    Experiment(tmp_path, STEM, {"num_steps": 2, "quick": True}, do).run(trials)
    write_report(tmp_path, torch.device("cpu"))
    report = json.loads((tmp_path / "label_efficiency.json").read_text())
    text = (tmp_path / "label_efficiency.md").read_text()
    assert "| DDPM | 30.0 ± 14.1 | 50.0 ± 0.0 | 25.0 |" in text
    assert "| DDPM | +15.0 ± 7.1 | +15.0 ± 7.1 |  |" in text
    assert text == QUICK_WARNING + markdown(report)
    assert [row["timestep"] for row in report["timesteps"]] == [1, 50]
    assert (tmp_path / "label_efficiency.png").stat().st_size > 1000
