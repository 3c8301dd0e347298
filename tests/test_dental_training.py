"""The documented trainings of the dental bundle, as a user gives them, in processes of their own."""

import os
import signal
import subprocess

import pytest
import torch
from conftest import REPOSITORY
from dental_data import write_labelled_folder
from test_bundles_run import command, run, torchrun, wait_for, weights

BUNDLE = "bundles/dental_radiograph_segmentation"
CONFIGS = f"{BUNDLE}/configs"
FINE_TUNING = [f"{CONFIGS}/train.yaml", f"{CONFIGS}/smoke.yaml"]
PRE_TRAINING = [f"{CONFIGS}/pretrain.yaml", f"{CONFIGS}/smoke_pretrain.yaml"]
OFTEN = {"train#trainer#checkpoint_every_steps": 1}

pytestmark = pytest.mark.slow


def train(files, expect=0, **overrides):
    return run("training", str(files), expect=expect, bundle_root=BUNDLE, **overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dental")
    write_labelled_folder(folder / "data", 8)
    return folder


@pytest.fixture(scope="module")
def pretrained(folder):
    train(PRE_TRAINING, dataset_dir=folder / "data", output_dir=folder / "pretrain", **OFTEN)
    return folder / "pretrain"


def test_fine_tuning_starts_from_what_pre_training_wrote(folder, pretrained):
    overrides = {"dataset_dir": folder / "data", "pretrained": pretrained / "model.pt"}
    output = train(FINE_TUNING, output_dir=folder / "still", learning_rate=1.0e-12, **overrides)
    before, after = weights(pretrained), weights(folder / "still")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name].shape != after[name].shape} == {
        "unet.out.2.conv.weight",
        "unet.out.2.conv.bias",
    }
    assert all(torch.allclose(before[name], after[name]) for name in before if not name.startswith("unet.out.2"))
    assert f"took {len(before) - 2} of {len(before)} tensors" in output and "mean_iou" in output


def test_killed_in_the_middle_pre_training_gets_to_the_same_weights(folder, pretrained):
    overrides = {"dataset_dir": folder / "data", "output_dir": folder / "killed", **OFTEN}
    arguments = command("training", str(PRE_TRAINING), bundle_root=BUNDLE, **overrides)
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(arguments, cwd=REPOSITORY, **silent)
    wait_for(folder / "killed" / "checkpoint_last.pt", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train(PRE_TRAINING, **overrides)
    for name, value in weights(folder / "killed").items():
        assert torch.equal(value, weights(pretrained)[name]), name


@pytest.mark.parametrize("baseline", ["pretrain_denoising_autoencoder", "pretrain_masked_images"])
def test_baselines_train_the_same_network_to_other_weights(folder, pretrained, baseline):
    files = [*PRE_TRAINING, f"{CONFIGS}/{baseline}.yaml"]
    train(files, dataset_dir=folder / "data", output_dir=folder / baseline)
    ours, theirs = weights(pretrained), weights(folder / baseline)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_processes_train_and_write_once(folder):
    files = [*FINE_TUNING, f"{CONFIGS}/multi_gpu_train.yaml"]
    # What is each process's own is off: dropout, and the normalisation of a weighted cross-entropy.
    overrides = {"dataset_dir": folder / "data", "network_def#dropout": 0.0, "class_weights": [1.0] * 6, "amp": False}
    torchrun("training", files, folder, bundle_root=BUNDLE, output_dir=folder / "ddp", **overrides)
    # What two processes saw together is what one sees with the doubled batch.
    train(FINE_TUNING, output_dir=folder / "one", batch_size=4, **overrides)
    expected, found = weights(folder / "one"), weights(folder / "ddp")
    # Adam makes steps of noise where a gradient is zero but for rounding: biases before a norm. So the mean it is.
    differences = torch.cat([(found[name] - expected[name]).abs().flatten() for name in expected])
    assert differences.mean() < 1e-5


def test_weights_of_another_network_and_masks_of_other_values_are_refused(folder, pretrained):
    change = {"pretrained": pretrained / "model.pt", "network_def#num_res_blocks": 2}
    for settings, named in ((change, "does not fit the segmenter"), ({"mask_values": "caries"}, "caries")):
        chosen = {"dataset_dir": folder / "data", "output_dir": folder / "refused", **settings}
        output = train(FINE_TUNING, expect=1, **chosen)
        assert named in output and "Traceback" not in output
        assert not (folder / "refused" / "model.pt").exists()
