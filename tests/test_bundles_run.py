"""The documented commands, as a user gives them, in processes of their own."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, draw_radiographs

CONFIGS = "bundles/cxr_autoencoder/configs"
SMOKE = f"['{CONFIGS}/train.yaml','{CONFIGS}/smoke.yaml']"

pytestmark = pytest.mark.slow


def command(run_id, config_file, **overrides):
    """A `monai.bundle run` of the autoencoder as an argument list."""
    arguments = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", run_id, "--config_file", config_file]
    for key, value in {"bundle_root": "bundles/cxr_autoencoder", **overrides}.items():
        arguments += [f"--{key}", str(value)]
    return arguments


def run(run_id, config_file, expect=0, bundle_root="bundles/cxr_autoencoder", **overrides):
    """The same in the bundle's folder, by the short names there."""
    words = command(run_id, config_file.replace(f"{bundle_root}/", ""), bundle_root=".", **overrides)
    options = {"cwd": REPOSITORY / bundle_root, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(words, **options)
    assert (done.returncode == 0) == (expect == 0), done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


LIST_THREADS = """
+imports: [$import pathlib]
+finalize: ["$print('threads:', [path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')])"]
"""


def launch(run_id, files, folder, nodes, **overrides):
    """The same command in two processes, of one machine or of two that meet at a rendezvous; a torchrun for each."""
    list_threads = folder / "list_threads.yaml"
    list_threads.write_text(LIST_THREADS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes", str(nodes)]
    launcher += ["--nproc_per_node", str(2 // nodes)]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", meeting, "--rdzv_id", "test"]
    arguments = command(run_id, str([*files, str(list_threads)]), **overrides)[3:]
    said = [folder / f"node_{node}.txt" for node in range(nodes)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = {"cwd": REPOSITORY, "stderr": subprocess.STDOUT, "env": one_thread}
    return [(subprocess.Popen(launcher + arguments, stdout=path.open("w"), **options), path) for path in said]


def finish(launched):
    """What they said; all have to end well, and without a thread of gloo that could abort them."""
    codes = [process.wait(900) for process, _ in launched]
    said = "".join(path.read_text() for _, path in launched)
    assert not any(codes), said[-6000:]
    assert said.count("threads:") == 2 and "gloo_runloop" not in said
    return said


def torchrun(run_id, files, folder, nodes=1, **overrides):
    return finish(launch(run_id, files, folder, nodes, **overrides))


def wait_for(path, process):
    deadline = time.monotonic() + 200
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    draw_radiographs(folder / "images", count=10, size=64)
    (folder / "images" / "broken.png").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """A smoke training with run id `training`, on a folder with one broken file."""
    overrides = {"limit": 20, "train#trainer#checkpoint_every_steps": 1, "max_epochs": 4}
    output = run("training", SMOKE, dataset_dir=folder / "images", output_dir=folder / "train", **overrides)
    return folder / "train", output, overrides


def test_training_leaves_weights_checkpoint_logs_and_record_and_reports_the_broken_file(trained):
    train, output, _ = trained
    assert weights(train)["latents_num_images"] > 0
    names = {path.name for path in train.iterdir()}
    assert {"checkpoint_last.pt", "model.pt", "run_record.json", "resolved_config.yaml"} <= names
    assert list((train / "tensorboard").glob("events*"))
    assert json.loads((train / "run_record.json").read_text())["runs"][0]["seed"] == 0
    assert str(train / "model.pt") in output and "broken.png" in output
    with open(train / "skipped.csv") as stream:
        assert [Path(row["image"]).name for row in csv.DictReader(stream)] == ["broken.png"]


def test_killed_in_the_middle_the_same_command_gets_to_the_same_weights(trained, folder):
    expected, _, overrides = trained
    overrides = {"dataset_dir": folder / "images", "output_dir": folder / "killed", **overrides}
    process = subprocess.Popen(
        command("training", SMOKE, **overrides), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = folder / "killed" / "checkpoint_last.pt"
    wait_for(checkpoint, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    steps_done = torch.load(checkpoint, weights_only=True)["progress"]["iteration"]
    output = run("training", SMOKE, **overrides)
    if process.returncode == -signal.SIGKILL:
        assert steps_done >= 1
        assert "resuming from" in output
    assert weights(folder / "killed").keys() == weights(expected).keys()
    for name, value in weights(folder / "killed").items():
        assert torch.equal(value, weights(expected)[name]), name


def test_run_id_run_of_a_finished_training_has_nothing_to_do(trained, folder):
    train, _, overrides = trained
    before = (train / "model.pt").stat().st_mtime_ns
    output = run("run", SMOKE, dataset_dir=folder / "images", output_dir=train, **overrides)
    assert "trained 0 steps" in output
    assert (train / "model.pt").stat().st_mtime_ns == before


def test_a_mistyped_knob_is_an_error_and_leaves_nothing(folder):
    output = run("training", SMOKE, expect=1, max_epoch=5, output_dir=folder / "typo")
    assert "'max_epoch'" in output and "'max_epochs'" in output and "Traceback" not in output
    assert not (folder / "typo").exists()


@pytest.fixture(scope="module")
def tiny_weights(trained):
    return {"weights_path": trained[0] / "model.pt", "image_size": 64}


def test_inference_reconstructs_the_good_ones_and_fails_for_the_bad_one(folder, tiny_weights):
    out = folder / "inference"
    output = run(
        "run", f"{CONFIGS}/inference.yaml", expect=1, dataset_dir=folder / "images", output_dir=out, **tiny_weights
    )
    assert "broken.png" in output
    assert len(list(out.glob("*_reconstruction.png"))) == 10
    assert (out / "contact_sheet.png").exists()


def test_evaluation_prints_its_table_and_two_processes_write_the_same(folder, tiny_weights, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as of each of the two
    overrides = {"dataset_dir": folder / "images", "split": "all", "batch_size": 4, **tiny_weights}
    files = [f"{CONFIGS}/{name}.yaml" for name in ("evaluate", "multi_gpu_evaluate")]
    output = run("run", files[0], output_dir=folder / "evaluation", **overrides)
    torchrun("run", files, folder, output_dir=folder / "by_two", **overrides)
    written = [(folder / name / "per_image.csv").read_bytes() for name in ("evaluation", "by_two")]
    assert written[0] == written[1]
    table = (folder / "evaluation" / "table.md").read_text()
    assert table.strip() in output
    assert json.loads((folder / "evaluation" / "metrics.json").read_text())["headline"]["overall"]["n"] == 10


def test_two_processes_train_and_write_once(folder):
    files = [f"{CONFIGS}/{name}.yaml" for name in ("train", "smoke", "multi_gpu_train")]
    torchrun("training", files, folder, dataset_dir=folder / "images", output_dir=folder / "ddp")
    assert len(list((folder / "ddp" / "tensorboard").glob("events*"))) <= 4
    assert weights(folder / "ddp")["latents_num_images"] > 0
    assert len(json.loads((folder / "ddp" / "run_record.json").read_text())["runs"]) == 1


@pytest.mark.shared
def test_real_dicoms_good_and_broken_train_and_the_broken_ones_are_reported(folder, shared_data):
    # With these, validation consists of one broken file at first.
    overrides = {"dataset_dir": shared_data / "dicom", "output_dir": folder / "dicom", "limit": 20, "val_fraction": 0.1}
    output = run("training", SMOKE, **overrides)
    with open(folder / "dicom" / "skipped.csv") as stream:
        skipped = {Path(row["image"]).name for row in csv.DictReader(stream)}
    broken = {"xa_multiframe96_jpeg_fragments.dcm", "cr_no_pixeldata.dcm"}
    assert skipped == broken
    assert "skipped:" in output
    assert weights(folder / "dicom")["latents_num_images"] > 0


def test_ctrl_c_says_how_to_go_on(folder):
    overrides = {"dataset_dir": folder / "images", "output_dir": folder / "stopped"}
    process = subprocess.Popen(
        command("training", SMOKE, max_epochs=10**6, **overrides),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's `&` makes tests ignore
    )
    wait_for(folder / "stopped" / "checkpoint_last.pt", process)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "the same command resumes from a checkpoint" in errors
    assert "Traceback" not in errors
