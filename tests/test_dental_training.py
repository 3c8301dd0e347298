"""The documented trainings of the dental bundle, as a user gives them, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from dental_data import write_labelled_folder

CONFIGS = "bundles/dental_radiograph_segmentation/configs"
FINE_TUNING = f"['{CONFIGS}/train.yaml','{CONFIGS}/smoke.yaml']"
PRE_TRAINING = f"['{CONFIGS}/pretrain.yaml','{CONFIGS}/smoke_pretrain.yaml']"

OFTEN = {"train#trainer#checkpoint_every_steps": 1}

pytestmark = pytest.mark.slow


def command(config_file, **overrides):
    arguments = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", config_file]
    for key, value in {"bundle_root": "bundles/dental_radiograph_segmentation", **overrides}.items():
        arguments += [f"--{key}", str(value)]
    return arguments


def train(repository, config_file, expect=0, **overrides):
    done = subprocess.run(
        command(config_file, **overrides), cwd=repository, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode == 0) == (expect == 0), done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dental")
    write_labelled_folder(folder / "data", 8)
    return folder


@pytest.fixture(scope="module")
def repository():
    from conftest import REPOSITORY

    return REPOSITORY


@pytest.fixture(scope="module")
def pretrained(folder, repository):
    train(repository, PRE_TRAINING, dataset_dir=folder / "data", output_dir=folder / "pretrain", **OFTEN)
    return folder / "pretrain"


def test_fine_tuning_starts_from_what_pre_training_wrote(folder, repository, pretrained):
    overrides = {"dataset_dir": folder / "data", "pretrained": pretrained / "model.pt"}
    output = train(repository, FINE_TUNING, output_dir=folder / "still", learning_rate=1.0e-12, **overrides)
    before, after = weights(pretrained), weights(folder / "still")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name].shape != after[name].shape} == {
        "unet.out.2.conv.weight",
        "unet.out.2.conv.bias",
    }
    assert all(torch.allclose(before[name], after[name]) for name in before if not name.startswith("unet.out.2"))
    assert f"took {len(before) - 2} of {len(before)} tensors" in output and "mean_iou" in output


def test_killed_in_the_middle_pre_training_gets_to_the_same_weights(folder, repository, pretrained):
    overrides = {"dataset_dir": folder / "data", "output_dir": folder / "killed", **OFTEN}
    process = subprocess.Popen(
        command(PRE_TRAINING, **overrides), cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (folder / "killed" / "checkpoint_last.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train(repository, PRE_TRAINING, **overrides)
    for name, value in weights(folder / "killed").items():
        assert torch.equal(value, weights(pretrained)[name]), name


@pytest.mark.parametrize("rival", ["pretrain_denoising_autoencoder", "pretrain_masked_images"])
def test_rivals_train_the_same_network_to_other_weights(folder, repository, pretrained, rival):
    configs = PRE_TRAINING.replace("]", f",'{CONFIGS}/{rival}.yaml']")
    train(repository, configs, dataset_dir=folder / "data", output_dir=folder / rival)
    ours, theirs = weights(pretrained), weights(folder / rival)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_processes_train_and_write_once(folder, repository):
    configs = FINE_TUNING.replace("]", f",'{CONFIGS}/multi_gpu_train.yaml']")
    # What is each process's own is off: dropout, and the normalisation of a weighted cross-entropy.
    overrides = {"dataset_dir": folder / "data", "network_def#dropout": 0.0, "class_weights": [1.0] * 6, "amp": False}
    arguments = command(configs, output_dir=folder / "ddp", **overrides)
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        launcher + arguments[3:], cwd=repository, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # What two processes saw together is what one sees with the doubled batch.
    train(repository, FINE_TUNING, output_dir=folder / "one", batch_size=4, **overrides)
    expected, found = weights(folder / "one"), weights(folder / "ddp")
    # Adam makes steps of noise where a gradient is zero but for rounding: biases before a norm. So the mean it is.
    differences = torch.cat([(found[name] - expected[name]).abs().flatten() for name in expected])
    assert differences.mean() < 1e-5


def test_weights_of_another_network_are_refused(folder, repository, pretrained):
    output = train(
        repository,
        FINE_TUNING,
        expect=1,
        dataset_dir=folder / "data",
        output_dir=folder / "refused",
        pretrained=pretrained / "model.pt",
        **{"network_def#num_res_blocks": 2},
    )
    assert "does not fit the segmenter" in output and "Traceback" not in output
    assert not (folder / "refused" / "model.pt").exists()


def test_masks_of_other_values_are_named(folder, repository):
    output = train(
        repository,
        FINE_TUNING,
        expect=1,
        dataset_dir=folder / "data",
        output_dir=folder / "values",
        mask_values="caries",
    )
    assert "caries" in output and "Traceback" not in output
