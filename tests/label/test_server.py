"""A real server process, MONAI Label's own client, and the loop of labelling against it, of folder and of archive."""

import base64
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs

import jwt
import numpy as np
import psutil
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from label_data import MODEL, REPOSITORY, truth_folder
from label_server import (
    DENTAL_MODEL,
    START_SECONDS,
    client_of,
    infer_labels,
    kill_tree,
    label_and_train,
    make_dx,
    mean_dice,
    real_radiographs,
    serving,
    unlabelled_bundle,
)
from PIL import Image
from stand_in import StandIn, served

from common.io.mask_files import read_mask
from common.io.segmentation_classes import GROUPED
from common.label.dicom_archive import labels_of_seg
from common.label.weights_store import WeightsStore

# A proxy that is not there: MONAI Label's own datastore for archives downloads dcmqi when it starts.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")

pytestmark = pytest.mark.slow


def test_the_loop_on_phantoms_and_a_kill_in_the_middle(tiny_bundle, studies, tmp_path):
    truth = {path.stem: path for path in sorted(truth_folder(studies).iterdir())}
    store = WeightsStore(tmp_path / "weights", tiny_bundle / "models" / "model.pt")
    options = ["--conf", "bundle_dir", str(tiny_bundle), "--conf", "weights_dir", str(store.folder)]
    with serving(studies, tmp_path / "server.log", *options) as (address, process):
        client = client_of(address, tmp_path / "client")
        before, after, _ = label_and_train(client, MODEL, truth, max_epochs=3, epoch_length=20, learning_rate=0.003)
        assert after > before and store.served() == 1

        # Killed in the middle of a training, which ends with it.
        client.train_start(MODEL, {"max_epochs": 500, "epoch_length": 100})
        deadline = time.monotonic() + START_SECONDS
        while not list((store.folder / "runs").glob("*/model.pt")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        # A reader of its output stays, so that it is not the broken pipe that ends it at some time.
        readers = [os.open(f"/proc/{child.pid}/fd/1", os.O_RDONLY) for child in children]
        os.kill(process.pid, signal.SIGKILL)  # and not waited for
        assert readers and not psutil.wait_procs(children, timeout=30)[1]
        for reader in readers:
            os.close(reader)
    assert store.served() == 1
    with serving(studies, tmp_path / "again.log", *options) as (address, _):
        client = client_of(address, tmp_path / "client")
        assert client.info()["datastore"]["completed"] == 5
        assert infer_labels(client, "tooth_0", MODEL)[1]["weights_version"] == 1
        assert mean_dice(client, MODEL, truth) == pytest.approx(after)


def test_with_a_login_everything_but_info_needs_it(studies, tmp_path):
    with login_realm() as (realm, token_for):
        environment = {
            "MONAI_LABEL_AUTH_ENABLE": "true",
            "MONAI_LABEL_AUTH_REALM_URI": realm,
            "MONAI_LABEL_CORS_ORIGINS": '["http://viewer.example:3000"]',
        }
        with serving(studies, tmp_path / "server.log", **environment) as (address, _):
            assert requests.get(f"{address}/info/", timeout=60).json()["models"]
            assert requests.get(f"{address}/auth/", timeout=60).json()["enabled"]
            admin, user = (login(address, name) for name in ("admin", "user"))
            assert login(address, "nobody").status_code == 401
            check_login_of_every_path(address, login_header(admin))
            assert requests.post(f"{address}/reload", headers=login_header(user), timeout=60).status_code == 403
            assert requests.post(f"{address}/reload", headers=login_header(admin), timeout=60).status_code == 200
            forged = {"Authorization": f"Bearer {token_for('admin', algorithm='none')}"}
            assert requests.get(f"{address}/datastore/", headers=forged, timeout=60).status_code == 401
            client = client_of(address, tmp_path / "client")
            client.update_auth(user.json())
            assert client.next_sample("first", {})["id"] == "tooth_0"
            check_listed_viewer(address, login_header(user))


def login(address, name):
    return requests.post(f"{address}/auth/token", data={"username": name, "password": "secret"}, timeout=60)


def login_header(answer):
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def check_login_of_every_path(address, header):
    """Every path that the server tells of, and those that it does not, answer 401 without the header."""
    told = requests.get(f"{address}/openapi.json", headers=header, timeout=60).json()["paths"]
    asked = [(method, re.sub(r"{[^}]*}", "x", path)) for path, methods in told.items() for method in methods]
    asked = [(method, path) for method, path in asked if path not in ("/info/", "/auth/", "/auth/token")]
    hidden = (
        "/",
        "/docs",
        "/openapi.json",
        "/favicon.ico",
        "/ohif/",
        "/static/ohif/index.html",
        "/proxy/dicom/studies",
    )
    asked += [("get", path) for path in (*hidden, "/none", "//info/", "/info/../logs/")]
    asked += [("post", path) for path in ("/reload", "/reload/", "/train/", "/infer/wsi/x")]
    assert len(asked) > 40
    for method, path in asked:
        answer = requests.request(method, f"{address}{path}", timeout=60, allow_redirects=False)
        assert answer.status_code == 401 and (method == "head" or answer.json()["detail"]), (method, path)


def check_listed_viewer(address, header):
    """The page in MONAI_LABEL_CORS_ORIGINS may do what a user may, and its host is a name of the server."""
    viewer = {"Origin": "http://viewer.example:3000"}
    preflight = {**viewer, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    for answer in (
        requests.options(f"{address}/datastore/label", headers=preflight, timeout=60),
        requests.get(f"{address}/datastore/", headers={**viewer, **header}, timeout=60),
    ):
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == viewer["Origin"]
    assert requests.get(f"{address}/info/", headers={"Host": "viewer.example"}, timeout=60).status_code == 200
    for headers in ({"Host": "other.example"}, {"Origin": "http://viewer.example"}, {"Origin": "http://other.example"}):
        refused = requests.get(f"{address}/info/", headers=headers, timeout=60)
        assert refused.status_code in (400, 403) and "access-control-allow-origin" not in refused.headers
    assert requests.get(f"{address}/info/", headers={"Origin": address}, timeout=60).status_code == 200


@pytest.mark.shared
def test_the_loop_on_real_radiographs_from_the_first_labels(tmp_path, shared_data):
    """From the pre-trained U-Net, whose last convolution has seen no label: the shipped weights have seen hundreds."""
    bundle = unlabelled_bundle(tmp_path / DENTAL_MODEL)
    studies = tmp_path / "studies"
    studies.mkdir()
    truth = {}
    for image, label in real_radiographs(shared_data / "dental", 8, tmp_path / "labels"):
        shutil.copy(image, studies)
        truth[image.stem] = label
    options = ["--conf", "bundle_dir", str(bundle), "--conf", "weights_dir", str(tmp_path / "weights")]
    with serving(studies, tmp_path / "server.log", *options) as (address, _):
        client = client_of(address, tmp_path / "client")
        training = {"max_epochs": 4, "epoch_length": 10, "learning_rate": 0.001}
        before, after, status = label_and_train(client, DENTAL_MODEL, truth, **training)
    print(f"mean Dice {before:.4f} before, {after:.4f} after training on 5 labels")
    assert after > before + 0.1, status["details"]


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


@pytest.mark.parametrize(
    ("host", "login", "warns"), [("0.0.0.0", "false", True), ("127.0.0.1", "false", False), ("0.0.0.0", "true", False)]
)
def test_what_can_be_reached_from_outside_without_a_password_is_warned_of(studies, host, login, warns, tmp_path):
    words = ("--host", host, "--conf", "key", "two words")
    started = start_with_stand_in(tmp_path, studies, *words, MONAI_LABEL_AUTH_ENABLE=login)
    assert ("WARNING" in started.stderr) == warns
    assert f"http://{host}:8000" in started.stdout
    assert f"<--host><{host}><--port><8000><--conf><key><two words>" in started.stdout


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


# ---- a realm to log in at --------------------------------------------------------------------------------------------


ROLES = {"admin": ["monailabel-admin", "monailabel-user"], "user": ["monailabel-user"]}
PASSWORD = "secret"


@contextmanager
def login_realm():
    """Serve a realm with the users of `ROLES`; give its address and what makes a user's token."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def token_for(user, algorithm="RS256"):
        payload = {"preferred_username": user, "realm_access": {"roles": ROLES[user]}, "exp": time.time() + 3600}
        return jwt.encode(payload, None if algorithm == "none" else key, algorithm=algorithm)

    class Realm(StandIn):
        def do_GET(self):
            token = f"http://{self.headers['Host']}/token"
            self.answer(200, {"public_key": base64.b64encode(public).decode(), "token_endpoint": token})

        def do_POST(self):
            form = parse_qs(self.body().decode())
            user = form["username"][0]
            if user not in ROLES or form["password"] != [PASSWORD]:
                return self.answer(401, {"error": "invalid_grant"})
            return self.answer(200, {"access_token": token_for(user), "token_type": "bearer"})

    with served(Realm) as server:
        yield f"{server.url}/realms/monailabel", token_for


# ---- an archive ------------------------------------------------------------------------------------------------------


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
