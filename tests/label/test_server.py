"""A real server process, MONAI Label's own client, and the loop of labelling against it."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from label_data import BUNDLE, MODEL, REPOSITORY, dice, truth_folder
from monai.bundle import ConfigParser
from PIL import Image

from common.label.weights_store import WeightsStore
from common.mask_files import read_mask
from common.networks.diffusion_segmenter import take_pretrained
from common.segmentation_classes import GROUPED

START_SECONDS, TRAIN_SECONDS = 300, 400
DENTAL_MODEL = "dental_radiograph_segmentation"

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(studies, log, *options):
    """Start scripts/serve_label.sh in a process group of its own; give its address; kill all of it at the end."""
    port = free_port()
    command = ["bash", str(REPOSITORY / "scripts" / "serve_label.sh"), str(studies), "--port", str(port), *options]
    environment = {**os.environ, "LABEL_VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, preexec_fn=os.setpgrp
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(process, address, log)
        yield address, process
    finally:
        kill_group(process)


def kill_group(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def wait_until_up(process, address, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{address}/info/", timeout=30).read()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


def client_of(address, folder):
    from monailabel.client import MONAILabelClient

    folder.mkdir(exist_ok=True)
    return MONAILabelClient(address, tmpdir=str(folder))


def wait_for_training(client):
    deadline = time.monotonic() + TRAIN_SECONDS
    while time.monotonic() < deadline:
        status = client.train_status()
        if status["status"] not in ("SUBMITTED", "RUNNING"):
            return status
        time.sleep(0.5)
    raise AssertionError(client.train_status())


def infer_labels(client, image, model):
    path, params = client.infer(model, image, {})
    mask = np.asarray(Image.open(path))
    Path(path).unlink()
    return mask, params


def label_and_train(client, model, truth, **training):
    """The loop of an annotator: five times the next sample, its mask, a label; then train.

    Returns:
        Mean Dice over all images against their true masks before and after, and the training's status.
    """
    assert client.info()["models"][model]["dimension"] == 2
    before = mean_dice(client, model, truth)
    labelled = []
    for _ in range(5):
        image = client.next_sample("epistemic", {})["id"]
        assert image not in labelled
        assert infer_labels(client, image, model)[0].shape == np.asarray(Image.open(truth[image])).shape
        client.save_label(image, str(truth[image]))
        labelled.append(image)
    client.train_start(model, training)
    status = wait_for_training(client)
    assert status["status"] == "DONE", status
    return before, mean_dice(client, model, truth), status


def mean_dice(client, model, truth):
    found = [dice(infer_labels(client, image, model)[0], np.asarray(Image.open(path))) for image, path in truth.items()]
    return float(np.mean(found))


def test_the_loop_on_phantoms_and_a_kill_in_the_middle(tiny_bundle, studies, tmp_path):
    truth = {path.stem: path for path in sorted(truth_folder(studies).iterdir())}
    store = WeightsStore(tmp_path / "weights", tiny_bundle / "models" / "model.pt")
    options = ["--conf", "bundle_dir", str(tiny_bundle), "--conf", "weights_dir", str(store.folder)]
    with serving(studies, tmp_path / "server.log", *options) as (address, process):
        client = client_of(address, tmp_path / "client")
        before, after, _ = label_and_train(client, MODEL, truth, max_epochs=3, epoch_length=20, learning_rate=0.003)
        assert after > before and store.served() == 1

        # Killed with everything below it in the middle of a training.
        client.train_start(MODEL, {"max_epochs": 500, "epoch_length": 100})
        deadline = time.monotonic() + START_SECONDS
        while not list((store.folder / "runs").glob("*/model.pt")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        kill_tree(process)
    assert store.served() == 1
    with serving(studies, tmp_path / "again.log", *options) as (address, _):
        client = client_of(address, tmp_path / "client")
        assert client.info()["datastore"]["completed"] == 5
        assert infer_labels(client, "tooth_0", MODEL)[1]["weights_version"] == 1
        assert mean_dice(client, MODEL, truth) == pytest.approx(after)


def kill_tree(process):
    """Kill the server first, as a crash would, then what it had started."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *children]:
        one.kill()


@pytest.mark.shared
def test_the_loop_on_real_radiographs_from_the_first_labels(tmp_path, shared_data):
    """From the pre-trained U-Net, whose last convolution has seen no label: the shipped weights have seen hundreds."""
    bundle = unlabelled_bundle(tmp_path / DENTAL_MODEL)
    studies, labels = tmp_path / "studies", tmp_path / "labels"
    studies.mkdir()
    labels.mkdir()
    truth = {}
    for row in held_out_rows(shared_data / "dental", 8):
        image = shared_data / "dental" / row["image"]
        (studies / image.name).write_bytes(image.read_bytes())
        mask = GROUPED.map_mask(read_mask(shared_data / "dental" / row["mask"]), "periapical").astype(np.uint8)
        truth[image.stem] = labels / f"{image.stem}.png"
        Image.fromarray(mask).save(truth[image.stem])
    options = ["--conf", "bundle_dir", str(bundle), "--conf", "weights_dir", str(tmp_path / "weights")]
    with serving(studies, tmp_path / "server.log", *options) as (address, _):
        client = client_of(address, tmp_path / "client")
        training = {"max_epochs": 4, "epoch_length": 10, "learning_rate": 0.001}
        before, after, status = label_and_train(client, DENTAL_MODEL, truth, **training)
    print(f"mean Dice {before:.4f} before, {after:.4f} after training on 5 labels")
    assert after > before + 0.1, status["details"]


def unlabelled_bundle(folder):
    """The dental bundle before its fine-tuning."""
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    (folder / "models").mkdir()
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    network = parser.get_parsed_content("network_def")
    take_pretrained(network, BUNDLE / "models" / "denoiser.pt")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def held_out_rows(folder, count):
    """Periapical radiographs that the shipped weights were not trained on."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "periapical" and row["split"] == "val"]
    return rows[:count]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder"], "found no such folder"),
        ([], "found no folder of radiographs"),
        (["--pacs", "ftp://x"], "expected http"),
        (["/tmp", "--port", "http"], "expected a number"),
        (["/tmp", "--conf", "one"], "needs a key and a value"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_installed(arguments, message):
    script = REPOSITORY / "scripts" / "serve_label.sh"
    environment = {**os.environ, "LABEL_VENV": "/nowhere"}
    done = subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 2 and message in done.stderr
    assert not Path("/no").exists()


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_what_can_be_reached_from_outside_without_a_password_is_warned_of(studies, host, warns, tmp_path):
    started = start_with_stand_in(tmp_path, studies, "--host", host, "--conf", "key", "two words")
    assert ("WARNING" in started.stderr) == warns
    assert f"http://{host}:8000" in started.stdout
    assert f"<--host><{host}><--port><8000><--conf><key><two words>" in started.stdout


def test_with_authentication_nothing_is_warned_of(studies, tmp_path):
    started = start_with_stand_in(tmp_path, studies, "--host", "0.0.0.0", MONAI_LABEL_AUTH_ENABLE="true")
    assert "WARNING" not in started.stderr


def start_with_stand_in(tmp_path, studies, *options, **environment):
    """Run the start script to where it starts the server, with a Python that says how it was called."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nfor word; do printf "<%s>" "$word"; done\n')
    python.chmod(0o755)
    return subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "serve_label.sh"), str(studies), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "LABEL_VENV": str(tmp_path / "venv"), **environment},
        timeout=60,
        check=True,
    )
