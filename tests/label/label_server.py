"""A real server process, MONAI Label's own client, the loop of an annotator, and a real archive."""

import csv
import json
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
import requests
from dicomweb_client import DICOMwebClient
from label_data import BUNDLE, REPOSITORY, dice
from PIL import Image
from pydicom import dcmread

from common.io import read_radiograph
from common.io.dicom_dx import DxSettings, dx_dataset, write_dx
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


# ---- an archive ------------------------------------------------------------------------------------------------------


PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Orthanc:
    """An archive of its own in a folder, started and stopped at will; it keeps what it has."""

    def __init__(self, folder):
        if not shutil.which("Orthanc") or not PLUGIN.exists():
            pytest.skip("needs Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb")
        self.folder = folder
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/dicom-web"
        self.client = DICOMwebClient(self.url)
        self.process = None
        folder.mkdir()
        config = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(config))

    def start(self):
        with (self.folder / "orthanc.log").open("ab") as log:
            command = ["Orthanc", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, (self.folder / "orthanc.log").read_text()[-2000:]
            try:
                requests.get(f"{self.url}/studies", timeout=5).raise_for_status()
                return
            except requests.RequestException:
                assert time.monotonic() < deadline, "Orthanc did not start"
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def store(self, *paths):
        """Store DICOM files; returns the SeriesInstanceUID of the first."""
        datasets = [dcmread(path) for path in paths]
        self.client.store_instances(datasets)
        return str(datasets[0].SeriesInstanceUID)

    def instances(self):
        """Orthanc's own ids of all files that it has."""
        return sorted(requests.get(f"{self.root}/instances", timeout=30).json())

    def segmentations(self):
        """All SEGs, oldest first."""
        series = self.client.search_for_series(search_filters={"Modality": "SEG"})
        uids = [(one["0020000D"]["Value"][0], one["0020000E"]["Value"][0]) for one in series]
        found = [dataset for one in uids for dataset in self.client.retrieve_series(*one)]
        return sorted(found, key=lambda dataset: (dataset.ContentDate, dataset.ContentTime))

    def remove_series(self, uid):
        """Delete a series by its SeriesInstanceUID."""
        found = requests.post(f"{self.root}/tools/lookup", data=uid, timeout=30).json()
        for entry in found:
            requests.delete(f"{self.root}{entry['Path']}", timeout=30).raise_for_status()


def make_dx(image, path, spacing_mm=(0.2, 0.1)):
    """The DX that png_to_dx makes of a picture."""
    pixels = read_radiograph(image).pixels
    return write_dx(dx_dataset(pixels, DxSettings(body_part="JAW"), spacing_mm), path, pixels)
