"""A real server process on a real Orthanc, and MONAI Label's own client."""

import threading

import numpy as np
import pytest
from label_data import MODEL, truth_folder
from label_server import (
    client_of,
    infer_labels,
    kill_tree,
    label_and_train,
    mean_dice,
    serving,
)
from orthanc import make_dx
from PIL import Image

from common.io.mask_files import read_mask
from common.io.segmentation_classes import GROUPED
from common.label.dicom_archive import labels_of_seg
from common.label.weights_store import WeightsStore

# A proxy that is not there: MONAI Label's own datastore for archives downloads dcmqi when it starts.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")

pytestmark = pytest.mark.slow


def newest_labels(orthanc):
    """Labels of the newest SEG of each image."""
    read = [(one.ReferencedSeriesSequence[0], labels_of_seg(one, "", GROUPED)) for one in orthanc.segmentations()]
    return {str(referenced.SeriesInstanceUID): labels for referenced, labels in read}


def test_the_loop_and_a_kill_while_labels_are_saved(orthanc, tiny_bundle, studies, tmp_path):
    truth = {}
    for image in sorted(studies.iterdir()):
        truth[orthanc.store(make_dx(image, tmp_path / f"{image.stem}.dcm"))] = truth_folder(studies) / image.name
    store = WeightsStore(tmp_path / "weights", tiny_bundle / "models" / "model.pt")
    options = ["--conf", "bundle_dir", str(tiny_bundle), "--conf", "weights_dir", str(store.folder)]
    cache = {"MONAI_LABEL_DATASTORE_CACHE_PATH": str(tmp_path / "cache")}
    with serving(orthanc.url, tmp_path / "server.log", *options, **cache, **NO_NETWORK) as (address, process):
        client = client_of(address, tmp_path / "client")
        before, after, _ = label_and_train(client, MODEL, truth, max_epochs=3, epoch_length=20, learning_rate=0.003)
        assert after > before and store.served() == 1
        stored = newest_labels(orthanc)
        assert len(stored) == 5 and all(np.array_equal(stored[image], read_mask(truth[image])) for image in stored)
        sent, saved = save_until_killed(client, process, truth, tmp_path / "label.png")

    assert len(saved) >= 11
    stored = newest_labels(orthanc)
    for image, mask in dict(saved).items():
        last_sent = next(other for name, other in reversed(sent) if name == image)
        assert np.array_equal(stored[image], mask) or np.array_equal(stored[image], last_sent)
    with serving(orthanc.url, tmp_path / "again.log", *options, **cache, **NO_NETWORK) as (address, _):
        client = client_of(address, tmp_path / "client")
        assert client.info()["datastore"]["completed"] == len(stored)
        image = saved[0][0]
        assert np.array_equal(read_mask(client.download_label(image, "final")), stored[image])
        assert infer_labels(client, image, MODEL)[1]["weights_version"] == 1
        assert mean_dice(client, MODEL, truth) == pytest.approx(after)


def save_until_killed(client, process, truth, path):
    """Save ever other labels; kill the server in the middle of one. Returns what was sent and what was confirmed."""
    sent, saved = [], []
    images, killer = sorted(truth), threading.Timer(0.1, kill_tree, [process])
    for number in range(1000):
        image = images[number % len(images)]
        mask = np.roll(read_mask(truth[image]), number + 1, axis=1).astype(np.uint8)
        Image.fromarray(mask).save(path)
        sent.append((image, mask))
        if number == 11:
            killer.start()
        try:
            client.save_label(image, str(path))
        except OSError:
            break
        saved.append((image, mask))
    killer.join()
    return sent, saved
