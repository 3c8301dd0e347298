"""The documented commands of the latent diffusion bundle run on what ships with it, from its configs as they are."""

import csv
import json

import pytest
import torch
from monai.bundle import ConfigWorkflow
from test_bundles_run import run as run_alone
from test_bundles_run import torchrun

from common.data.datalists import radiograph_items
from common.io import read_radiograph

BUNDLE = "bundles/cxr_dino_latent_diffusion"
QUICK = {"num_inference_steps": 2, "prior_steps": 4, "device": "$torch.device('cpu')"}


@pytest.fixture
def run(repository):
    """Run one of the bundle's workflows with overrides, as `python -m monai.bundle run` does."""

    def run_workflow(config, **overrides):
        root = repository / BUNDLE
        files = [str(root / "configs" / f"{name}.yaml") for name in config.split("+")]
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type=None, bundle_root=str(root), **overrides)
        workflow.initialize()
        workflow.run()

    return run_workflow


def rows_of(folder):
    with open(folder / "manifest.csv", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "overrides", "num_sources"),
    [
        ("prior", {"num_samples": 3, "label": "tuberculosis"}, 0),
        ("variation", {"limit": 2, "num_per_source": 2}, 1),
        ("neighbourhood", {"limit": 3, "num_per_source": 1}, 1),
        ("interpolation", {"num_samples": 3}, 2),
    ],
)
def test_strategies(run, tmp_path, strategy, overrides, num_sources):
    run("inference", strategy=strategy, output_dir=str(tmp_path), batch_size=2, dicom=True, **overrides, **QUICK)
    rows = rows_of(tmp_path)
    assert {row["strategy"] for row in rows} == {strategy} and len(rows) >= 3
    assert all(len([s for s in row["sources"].split(";") if s]) == num_sources for row in rows)
    assert all(read_radiograph(tmp_path / row["image"]).pixels.shape == (1, 256, 256) for row in rows)
    assert len(list((tmp_path / "dicom").glob("*.dcm"))) == len(rows)
    assert (tmp_path / "contact_sheet.png").is_file()
    assert len(radiograph_items(tmp_path, "all", 0.0, 0)) == len(rows), "the folder is a dataset_dir"
    if strategy == "prior":
        assert {row["label"] for row in rows} == {"tuberculosis"}


@pytest.mark.slow
def test_two_processes_generate_the_files_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as of each of the two
    files = [f"{BUNDLE}/configs/{name}.yaml" for name in ("inference", "multi_gpu_inference")]
    settings = {"bundle_root": BUNDLE, "strategy": "prior", "num_samples": 5, "batch_size": 2}
    settings |= {"num_inference_steps": 2, "prior_steps": 4}
    torchrun("run", files, tmp_path, output_dir=tmp_path / "two", **settings)
    run_alone("run", files[0], output_dir=tmp_path / "one", **settings)
    made = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "images").iterdir()} for name in ("one", "two")
    ]
    assert len(made[0]) == 5 and made[0] == made[1]
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


@pytest.mark.slow
def test_evaluation_and_privacy_on_the_shipped_samples(run, tmp_path):
    run(
        "evaluate",
        split="all",
        output_dir=str(tmp_path / "evaluation"),
        num_diverse_sources=2,
        num_diverse=2,
        num_resamples=3,
        **QUICK,
    )
    report = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    dino = report["features"]["dino"]
    assert dino["reconstruction"]["all"]["fd"] < dino["prior"]["all"]["fd"]
    generated = tmp_path / "evaluation" / "variation"
    run("privacy", generated_dir=str(generated), output_dir=str(tmp_path / "privacy"), num_controls=3, drop=True)
    assert (tmp_path / "privacy" / "privacy.json").is_file()
    assert (tmp_path / "privacy" / "distances.png").is_file()
    assert all(row["flagged"] in ("no", "yes") for row in rows_of(generated)), "the manifest says what was checked"


@pytest.mark.slow
def test_training_of_the_prior_in_miniature(run, tmp_path):
    run("train_prior+smoke_train_prior", output_dir=str(tmp_path), device="$torch.device('cpu')")
    weights = torch.load(tmp_path / "prior.pt", weights_only=True)
    assert weights["components.scaler.tokens_num_images"] > 0
