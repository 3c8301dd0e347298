"""A real server process, MONAI Label's own client, and the loop of an annotator: what the tests of servers share."""

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
from label_data import BUNDLE, REPOSITORY, dice
from PIL import Image

from common.io.mask_files import read_mask
from common.io.segmentation_classes import GROUPED
from common.networks.diffusion_segmenter import take_pretrained
from common.networks.weights import described, other_parts, save_weights

START_SECONDS, TRAIN_SECONDS = 300, 400
DENTAL_MODEL = "dental_radiograph_segmentation"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(studies, log, *options, **environment):
    """Start scripts/serve_label.sh in a process group of its own; give its address; kill all of it at the end."""
    port = free_port()
    where = ["--pacs", studies] if str(studies).startswith("http") else [str(studies)]
    command = ["bash", str(REPOSITORY / "scripts" / "serve_label.sh"), *where, "--port", str(port), *options]
    environment = {**os.environ, "LABEL_VENV": sys.prefix, "OMP_NUM_THREADS": "1", **environment}
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
    mask = read_mask(path)
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


def kill_tree(process):
    """Kill the server first, as a crash would, then what it had started."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *children]:
        one.kill()


def unlabelled_bundle(folder):
    """The dental bundle before its fine-tuning."""
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    (folder / "models").mkdir()
    shipped = BUNDLE / "models" / "model.pt"
    network = described(shipped)
    take_pretrained(network, BUNDLE / "models" / "denoiser.pt")
    save_weights(network, folder / "models" / "model.pt", other_parts(shipped))
    return folder


def real_radiographs(dental, count, labels):
    """Periapical radiographs that the shipped weights were not trained on, each with its true labels as PNG."""
    with (dental / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "periapical" and row["split"] == "val"]
    labels.mkdir()
    pairs = []
    for row in rows[:count]:
        image = dental / row["image"]
        mask = GROUPED.map_mask(read_mask(dental / row["mask"]), "periapical").astype(np.uint8)
        Image.fromarray(mask).save(labels / f"{image.stem}.png")
        pairs.append((image, labels / f"{image.stem}.png"))
    return pairs
