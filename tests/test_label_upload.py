"""Sending generated images to a stand-in for MONAI Label and for a DICOMweb archive, over loopback."""

from __future__ import annotations

import json
import socket
import threading
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from conftest import REPOSITORY, draw_radiographs
from script_module import load_script

from common.data.datalist_sources import DatasetError
from common.io import read_radiograph
from common.label.http_service import HttpService, LogInError, ServiceError
from common.label.label_upload import (
    UNKNOWN_MODEL,
    LabelDatastore,
    UploadError,
    model_of,
    synthetic_images,
    upload_name,
)

BUNDLES = REPOSITORY / "bundles"
COLUMNS = "image,synthetic,patient_id,strategy,seed,weights_sha256,sources,source_patient_ids,flagged"


class StandIn(BaseHTTPRequestHandler):
    """Stores what it gets as the services do that are not ours; the state is the server's."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, content=None):
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def lets_in(self):
        if len(self.server.images) == self.server.gone_after:
            self.close_connection = True  # without an answer, as of a server that was killed
            return False
        token = self.server.token
        if token and self.headers["Authorization"] != f"Bearer {token}":
            self.answer(401, {"detail": "Not authenticated"})
            return False
        return True

    def parts(self):
        """The request's multipart body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = BytesParser(policy=HTTP).parsebytes(head + body)
        assert message.is_multipart()
        return list(message.iter_parts())

    @property
    def query(self):
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def do_GET(self):
        if not self.lets_in():
            return
        if self.path == "/info/":
            self.answer(200, {"name": "stand-in", "models": {}})
        elif "/instances?" in self.path:
            uid = self.query["SOPInstanceUID"]
            self.answer(200, [{"00080018": {"Value": [uid]}}] if uid in self.server.instances else [])
        else:
            self.answer(200, "something else")

    def do_HEAD(self):
        if self.lets_in():
            self.answer(200 if self.query["image"] in self.server.images else 404)

    def do_PUT(self):
        form = {part.get_param("name", header="content-disposition"): part for part in self.parts()}
        if not self.lets_in():
            return
        name, file = self.query["image"], form["file"]
        if any(word in name for word in self.server.refused):
            self.answer(400, {"detail": f"{name}: found no radiograph"})
            return
        self.server.images[name] = {
            "params": json.loads(form["params"].get_payload(decode=True)),
            "file": file.get_filename(),
            "data": file.get_payload(decode=True),
        }
        self.answer(200, {"image": name})

    def do_POST(self):
        assert self.path == "/dicom-web/studies" and 'type="application/dicom"' in self.headers["Content-Type"]
        (part,) = self.parts()
        dataset = pydicom.dcmread(BytesIO(part.get_payload(decode=True)))
        if self.server.refused:
            self.answer(202, {"00081198": {"Value": [{}]}})
            return
        self.server.instances[str(dataset.SOPInstanceUID)] = dataset
        self.answer(200, {"00081199": {"Value": [{}]}})


class Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StandIn)
        self.images, self.instances, self.refused = {}, {}, ()
        self.token, self.gone_after = "", None
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def go_away(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def service():
    found = Service()
    yield found
    found.go_away()


@pytest.fixture(scope="module")
def script():
    return load_script("upload_synthetic")


@pytest.fixture
def folder(tmp_path):
    """Three generated images, the last made from a patient's."""
    draw_radiographs(tmp_path / "generated" / "images", count=3, size=24)
    rows = [
        "images/phantom_0.png,true,synthetic:0,prior,11,abc,,,",
        "images/phantom_1.png,true,synthetic:1,prior,12,abc,,,no",
        "images/phantom_2.png,true,jane_doe,variation,13,abc,/scans/jane_doe.png,jane_doe,no",
    ]
    write_manifest(tmp_path / "generated", rows)
    return tmp_path / "generated"


def write_manifest(folder, rows):
    (folder / "manifest.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")


def ends_with_one(function, *args, **options):
    with pytest.raises(SystemExit) as ended:
        function(*args, **options)
    return ended.value.code == 1


def test_images_arrive_with_their_provenance_and_names_that_say_synthetic(script, folder, service):
    script.upload_synthetic(str(folder), server=service.url, client_name="someone", model="ddpm 0.1.0")
    assert len(service.images) == 3
    for number, (name, image) in enumerate(sorted(service.images.items())):
        path = folder / "images" / f"phantom_{number}.png"
        assert name.startswith(f"synthetic_phantom_{number}_") and image["file"] == f"{name}.png"
        assert image["data"] == path.read_bytes()
        assert (
            image["params"].items()
            >= {
                **{"client_id": "someone", "synthetic": True, "model": "ddpm 0.1.0", "weights_sha256": "abc"},
                **{"seed": str(11 + number), "strategy": ["prior", "prior", "variation"][number]},
            }.items()
        )


def test_nothing_names_the_sources(script, folder, service):
    script.upload_synthetic(str(folder), server=service.url)
    script.upload_synthetic(str(folder), dicomweb=f"{service.url}/dicom-web")
    assert len(service.images) == len(service.instances) == 3
    assert "jane" not in json.dumps([image["params"] for image in service.images.values()])
    assert not [dataset for dataset in service.instances.values() if "jane" in str(dataset)]


def test_again_sends_nothing_and_limit_counts(script, folder, service, capsys):
    script.upload_synthetic(str(folder), server=service.url, limit=2)
    assert len(service.images) == 2
    before = dict(service.images)
    script.upload_synthetic(str(folder), server=service.url)
    assert "1 sent, 2 there already, 0 not sent" in capsys.readouterr().out
    assert len(service.images) == 3 and service.images.items() >= before.items()


def test_another_image_of_the_same_file_name_is_another_image(tmp_path):
    path = tmp_path / "images" / "prior.0001 ü.png"
    names = {upload_name(path, data) for data in (b"one", b"two")}
    assert len(names) == 2 and all(name.startswith("synthetic_prior_0001_") for name in names)
    assert all(name.replace("_", "").replace("-", "").isascii() and "." not in name for name in names)


def test_bad_images_are_told_and_the_others_sent(script, folder, service, capsys):
    (folder / "images" / "phantom_0.png").write_text("no picture")
    service.refused = ("phantom_2",)
    assert ends_with_one(script.upload_synthetic, str(folder), server=service.url)
    printed = capsys.readouterr().out
    assert "phantom_0.png: found text" in printed and "found no radiograph" in printed and "status 400" in printed
    assert "1 sent, 0 there already, 2 not sent" in printed
    assert [name[:19] for name in service.images] == ["synthetic_phantom_1"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("images/phantom_0.png,false,p,prior,1,abc,,,", "not call it synthetic"),
        ("images/phantom_0.png,,p,prior,1,abc,,,", "not call it synthetic"),
        ("images/phantom_0.png,true,p,variation,1,abc,,,yes", "copy of a patient"),
        ("../real.png,true,p,prior,1,abc,,,", "outside"),
    ],
)
def test_images_that_may_be_of_patients_are_never_sent(script, folder, service, capsys, row, problem):
    (folder.parent / "real.png").write_bytes((folder / "images" / "phantom_0.png").read_bytes())
    write_manifest(folder, [row])
    for options in ({"server": service.url}, {"dicomweb": f"{service.url}/dicom-web"}):
        assert ends_with_one(script.upload_synthetic, str(folder), **options)
        assert problem in capsys.readouterr().out
    assert not service.images and not service.instances


def test_archive_gets_dx_files_that_say_synthetic(script, folder, service, capsys):
    for _ in range(2):
        script.upload_synthetic(str(folder), dicomweb=f"{service.url}/dicom-web/", model="ddpm 0.1.0", body_part="jaw")
    assert "0 sent, 3 there already" in capsys.readouterr().out
    assert len({dataset.StudyInstanceUID for dataset in service.instances.values()}) == 3
    for number, dataset in enumerate(service.instances.values()):
        assert dataset.Modality == "DX" and dataset.BodyPartExamined == "JAW"
        assert str(dataset.PatientName) == "SYNTHETIC^NOT A PATIENT" and f"seed: {11 + number}" in dataset.ImageComments
        dataset.save_as(folder / "back.dcm")
        back, source = (read_radiograph(folder / name) for name in ("back.dcm", f"images/phantom_{number}.png"))
        assert float((back.pixels - source.pixels).abs().max()) < 1e-6


def test_archive_that_stores_nothing_is_told(script, folder, service, capsys):
    service.refused = ("all",)
    assert ends_with_one(script.upload_synthetic, str(folder), dicomweb=f"{service.url}/dicom-web", limit=1)
    assert "did not store it, status 202" in capsys.readouterr().out


def test_server_that_is_away_is_told(script, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServiceError, match=f"{url}: found no service .*refused.*Start it"):
        script.upload_synthetic(str(folder), server=url)


def test_server_that_goes_away_keeps_what_it_has(script, folder, service):
    service.gone_after = 2
    with pytest.raises(ServiceError, match=r"found no service.* 2 sent.* goes on from there"):
        script.upload_synthetic(str(folder), server=service.url)
    assert len(service.images) == 2


def test_another_service_is_told(folder, service):
    with pytest.raises(ServiceError, match="no MONAI Label server"):
        LabelDatastore(HttpService(f"{service.url}/elsewhere"), "me")


def test_token_of_the_environment_lets_in(script, folder, service, monkeypatch):
    service.token = "s3cret"
    for token in ("", "wrong"):
        monkeypatch.setenv("MONAI_LABEL_TOKEN", token)
        with pytest.raises(LogInError, match="MONAI_LABEL_TOKEN") as refused:
            script.upload_synthetic(str(folder), server=service.url)
        assert "wrong" not in str(refused.value)
    monkeypatch.setenv("MONAI_LABEL_TOKEN", "s3cret")
    script.upload_synthetic(str(folder), server=service.url)
    assert len(service.images) == 3


def test_wrong_words_are_told_before_anything_is_sent(script, folder, service, tmp_path):
    for limit in (0, -1, 1.5, "all", True):
        with pytest.raises(UploadError, match="--limit"):
            script.upload_synthetic(str(folder), server=service.url, limit=limit)
    with pytest.raises(DatasetError, match=r"no manifest\.csv"):
        script.upload_synthetic(str(tmp_path / "images"), server=service.url)
    assert not service.images


@pytest.mark.parametrize("name", ["cxr_dino_latent_diffusion", "dental_radiograph_segmentation"])
def test_shipped_samples_can_be_sent_and_know_their_model(script, service, name):
    samples = BUNDLES / name / "samples"
    assert model_of(samples, BUNDLES).startswith(f"{name} ")
    script.upload_synthetic(str(samples), server=service.url, limit=2)
    assert len(service.images) == 2 and all(
        image["params"]["model"].startswith(name) for image in service.images.values()
    )
    assert not [image for image in synthetic_images(samples, "m") if image.problem]


def test_weights_that_nobody_ships_have_no_model(script, folder, service, capsys):
    assert model_of(folder, BUNDLES) == UNKNOWN_MODEL
    script.upload_synthetic(str(folder), server=service.url, limit=1)
    assert "--model" in capsys.readouterr().out
