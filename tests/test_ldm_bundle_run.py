"""The latent diffusion bundle's commands, as a user gives them: alone, killed and resumed, and as two processes."""

import csv
import json
import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from conftest import draw_radiographs
from test_bundles_run import launch, run, torchrun, wait_for, weights

from common.data.latent_store import ARRAYS, DESCRIPTION_NAME, LatentStore

BUNDLE = "bundles/cxr_dino_latent_diffusion"
CONFIGS = f"{BUNDLE}/configs"
TRAIN = [f"{CONFIGS}/train.yaml", f"{CONFIGS}/smoke.yaml"]
# 7 images for training and 3 for validation: neither divides evenly into batches or among two processes.
IMAGES = {"limit": 20, "val_fraction": 0.4}
EXACT = {"store#amp": False, "store#batch_size": 1}  # so that two ways to the same store differ in nothing
AS_IN_SMOKE = {"image_size": 64, "dino_image_size": 56, "store#num_workers": 0}
STEPS = {"max_epochs": 3, "val_interval": 3}

pytestmark = pytest.mark.slow


def checkpoint(folder):
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ldm")
    draw_radiographs(folder / "images", count=10, size=64)
    (folder / "images" / "broken.png").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def store(folder):
    """A store made by two processes of the cache workflow."""
    files = [f"{CONFIGS}/cache.yaml", f"{CONFIGS}/multi_gpu_cache.yaml"]
    torchrun(
        "run",
        files,
        folder,
        bundle_root=BUNDLE,
        dataset_dir=folder / "images",
        cache_dir=folder / "store",
        **AS_IN_SMOKE,
        **IMAGES,
        **EXACT,
    )
    return folder / "store"


@pytest.fixture(scope="module")
def trained(folder, store):
    """A smoke training of one process, with the batch of two, from that store."""
    overrides = {"dataset_dir": folder / "images", "cache_dir": store, "batch_size": 4, **IMAGES, **EXACT, **STEPS}
    overrides["amp"] = False
    overrides["train#trainer#checkpoint_every_steps"] = 1
    output = run("training", str(TRAIN), bundle_root=BUNDLE, output_dir=folder / "train", **overrides)
    return folder / "train", output, overrides


def test_cache_of_two_processes_is_complete_and_reports_the_broken_file(store):
    made = LatentStore(store)
    assert made.is_complete and [item["split"] for item in made.items] == 7 * ["train"] + 3 * ["val"]
    assert all(np.abs(made.arrays[name]).reshape(10, -1).max(axis=1).all() for name in ("latents_mean", "cls_token"))
    with open(store / "skipped.csv") as stream:
        assert {row["image"].rsplit("/", 1)[-1] for row in csv.DictReader(stream)} == {"broken.png"}


def test_training_opens_the_store_of_the_cache_workflow_and_leaves_weights_samples_and_record(trained):
    folder, output, _ = trained
    assert "caching" not in output
    assert weights(folder)["context_encoder.scaler.tokens_num_images"] == 7
    assert {"checkpoint_last.pt", "run_record.json", "resolved_config.yaml"} <= {p.name for p in folder.iterdir()}
    assert list((folder / "tensorboard").glob("events*"))
    assert [p.name for p in (folder / "samples").iterdir()] == ["samples_epoch_003.png"]


@pytest.fixture(scope="module")
def two_machines(folder, trained):
    """Configs, settings and output of a training by one process on each of two machines."""
    overrides = {"bundle_root": BUNDLE, "dataset_dir": folder / "images", "output_dir": folder / "ddp"}
    overrides |= {"cache_dir": folder / "ddp_store", "batch_size": 2, "amp": False, **IMAGES, **EXACT, **STEPS}
    files = [*TRAIN, f"{CONFIGS}/multi_gpu_train.yaml"]
    return files, overrides, torchrun("training", files, folder, nodes=2, **overrides)


def test_two_machines_equal_one_process_with_the_doubled_batch_and_write_once(trained, two_machines, folder, store):
    one_process, its_output, _ = trained
    output = two_machines[2]
    alone, together = LatentStore(store), LatentStore(folder / "ddp_store")
    assert alone.made_with == together.made_with
    for name in ARRAYS:
        np.testing.assert_allclose(together.arrays[name], alone.arrays[name], rtol=2e-3, atol=2e-3)

    saved = [checkpoint(path) for path in (one_process, folder / "ddp")]
    best = [each["progress"]["best"] for each in saved]
    assert best[1] == pytest.approx(best[0], rel=1e-5)
    expected, found = (each["objects"] for each in saved)
    for name, value in expected["network"].items():
        # Adam makes steps of noise where a gradient is zero but for rounding: biases before a norm.
        torch.testing.assert_close(
            found["network"][name], value, atol=1e-4, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )

    assert len(json.loads((folder / "ddp" / "run_record.json").read_text())["runs"]) == 1
    events = [len(list((path / "tensorboard").glob("events*"))) for path in (one_process, folder / "ddp")]
    assert events[0] == events[1]
    assert output.count("validation at step") == its_output.count("validation at step") >= 1


def test_after_a_worker_was_killed_the_same_command_ends_with_the_same_weights(two_machines, folder):
    files, overrides, _ = two_machines
    overrides = {**overrides, "output_dir": folder / "lost", "train#trainer#checkpoint_every_steps": 1}
    launched = launch("training", files, folder, nodes=2, **overrides)
    wait_for(folder / "lost" / "checkpoint_last.pt", launched[0][0])
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(launched[1][0].pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(worker), signal.SIGKILL)
    assert all(process.wait(300) for process, _ in launched), "neither machine waits for the other"
    assert "resuming from" in torchrun("training", files, folder, nodes=2, **overrides)
    expected, found = (checkpoint(folder / name)["objects"] for name in ("ddp", "lost"))
    for name, value in expected["network"].items():
        assert torch.equal(found["network"][name], value), name


def test_other_settings_make_a_store_of_their_own(trained, folder, store):
    _, _, overrides = trained
    before = {path: path.read_bytes() for path in store.rglob("*.npy")}
    changed = {**overrides, "bundle_root": BUNDLE, "output_dir": folder / "other", "dino_image_size": 70}
    run("training", str(TRAIN), **changed)
    made = [json.loads(path.read_text())["made_with"] for path in store.rglob(DESCRIPTION_NAME)]
    assert sorted(each["encoder_image_size"] for each in made) == [56, 70]
    assert all(path.read_bytes() == content for path, content in before.items())
