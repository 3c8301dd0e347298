"""Sending generated images to a stand-in for MONAI Label and for a DICOMweb archive, over loopback."""

from __future__ import annotations

import json
from email.parser import BytesParser
from email.policy import HTTP
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from conftest import REPOSITORY, draw_radiographs
from script_module import load_script
from stand_in import StandIn, served

from common.errors import DatasetError, SettingsError
from common.io import read_radiograph
from common.label.services import UNKNOWN_MODEL, LabelDatastore, ServiceError, model_of, synthetic_images, upload_name

BUNDLES = REPOSITORY / "bundles"
COLUMNS = "image,synthetic,patient_id,strategy,seed,weights_sha256,sources,source_patient_ids,flagged"
DICOM_JSON = "application/dicom+json"


class Service(StandIn):
    """Stores what it gets as the services do that are not ours; the state is the server's."""

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
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = BytesParser(policy=HTTP).parsebytes(head + self.body())
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
            found = [{"00080018": {"vr": "UI", "Value": [uid]}}] if uid in self.server.instances else []
            self.answer(200, found, DICOM_JSON)
        elif self.path.startswith("/moved"):
            self.answer(307, None, Location=f"{self.server.url}{self.path.removeprefix('/moved')}")
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
            failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [1]}}]}}
            self.answer(int(self.server.refused), failed, DICOM_JSON)
            return
        self.server.instances[str(dataset.SOPInstanceUID)] = dataset
        self.answer(200, {"00081199": {"vr": "SQ", "Value": [{}]}}, DICOM_JSON)


@pytest.fixture
def service():
    with served(Service, images={}, instances={}, refused=(), token="", gone_after=None) as found:
        yield found


@pytest.fixture(scope="module")
def send():
    """The command."""
    return load_script("upload_synthetic").upload_synthetic


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


def test_images_arrive_with_their_provenance_and_names_that_say_synthetic(send, folder, service):
    send(str(folder), server=f"{service.url}/", client_name="someone", model="ddpm 0.1.0")
    assert len(service.images) == 3
    for number, (name, image) in enumerate(sorted(service.images.items())):
        path = folder / "images" / f"phantom_{number}.png"
        assert name.startswith(f"synthetic_phantom_{number}_") and image["file"] == f"{name}.png"
        assert image["data"] == path.read_bytes()
        told = {"client_id": "someone", "synthetic": True, "model": "ddpm 0.1.0", "weights_sha256": "abc"}
        how = {"seed": str(11 + number), "strategy": ["prior", "prior", "variation"][number]}
        assert image["params"].items() >= {**told, **how}.items()


def test_nothing_names_the_sources_again_sends_nothing_and_limit_counts(send, folder, service, capsys):
    for where in ({"server": service.url}, {"dicomweb": f"{service.url}/dicom-web"}):
        send(str(folder), **where, limit=2)
        assert "2 sent, 0 there already, 0 not sent" in capsys.readouterr().out
        send(str(folder), **where)
        assert "1 sent, 2 there already, 0 not sent" in capsys.readouterr().out
    assert len(service.images) == len(service.instances) == 3
    assert "jane" not in json.dumps([image["params"] for image in service.images.values()])
    assert not [dataset for dataset in service.instances.values() if "jane" in str(dataset)]


def test_another_image_of_the_same_file_name_is_another_image(tmp_path):
    path = tmp_path / "images" / "prior.0001 ü.png"
    names = {upload_name(path, data) for data in (b"one", b"two")}
    assert len(names) == 2 and all(name.startswith("synthetic_prior_0001_") for name in names)
    assert all(name.replace("_", "").replace("-", "").isascii() and "." not in name for name in names)


def test_bad_images_are_told_and_the_others_sent(send, folder, service, capsys):
    (folder / "images" / "phantom_0.png").write_text("no picture")
    service.refused = ("phantom_2",)
    with pytest.raises(SystemExit, match="1"):
        send(str(folder), server=service.url)
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
def test_images_that_may_be_of_patients_are_never_sent(send, folder, service, capsys, row, problem):
    (folder.parent / "real.png").write_bytes((folder / "images" / "phantom_0.png").read_bytes())
    write_manifest(folder, [row])
    for options in ({"server": service.url}, {"dicomweb": f"{service.url}/dicom-web"}):
        with pytest.raises(SystemExit, match="1"):
            send(str(folder), **options)
        assert problem in capsys.readouterr().out
    assert not service.images and not service.instances


def test_archive_gets_dx_files_that_say_synthetic(send, folder, service):
    send(str(folder), dicomweb=f"{service.url}/dicom-web/", model="ddpm 0.1.0", body_part="jaw")
    assert len({dataset.StudyInstanceUID for dataset in service.instances.values()}) == 3
    for number, dataset in enumerate(service.instances.values()):
        assert dataset.Modality == "DX" and dataset.BodyPartExamined == "JAW"
        assert str(dataset.PatientName) == "SYNTHETIC^NOT A PATIENT" and f"seed: {11 + number}" in dataset.ImageComments
        dataset.save_as(folder / "back.dcm")
        back, source = (read_radiograph(folder / name) for name in ("back.dcm", f"images/phantom_{number}.png"))
        assert float((back.pixels - source.pixels).abs().max()) < 1e-6


@pytest.mark.parametrize("status", ["202", "409"])
def test_archive_that_stores_nothing_is_told(send, folder, service, capsys, status):
    service.refused = status
    with pytest.raises(SystemExit, match="1"):
        send(str(folder), dicomweb=f"{service.url}/dicom-web", limit=1)
    assert "did not store it" in capsys.readouterr().out


def test_server_that_is_away_or_goes_away_is_told_and_keeps_what_it_has(send, folder, service, capsys):
    service.gone_after = 2
    with pytest.raises(ServiceError):
        send(str(folder), server=service.url)
    assert len(service.images) == 2 and "2 sent" in capsys.readouterr().out
    with served(Service) as gone:
        pass
    with pytest.raises(ServiceError, match="refused"):
        send(str(folder), server=gone.url)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", "ftp://host/a", "http://", ""])
def test_what_is_no_address_or_another_service_is_told_and_no_redirect_followed(send, folder, service, url):
    for wrong in (url, f"{service.url}/elsewhere", f"{service.url}/moved"):
        with pytest.raises(ServiceError):
            LabelDatastore(wrong, "", "me")
    if url:
        with pytest.raises(ServiceError):
            send(str(folder), dicomweb=url)


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(send, folder, service, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    send(str(folder), server=service.url, limit=1)
    send(str(folder), dicomweb=f"{service.url}/dicom-web", limit=1)
    assert len(service.images) == len(service.instances) == 1


def test_token_of_the_environment_lets_in(send, folder, service, monkeypatch):
    service.token = "s3cret"
    for token in ("", "wrong"):
        monkeypatch.setenv("MONAI_LABEL_TOKEN", token)
        for options in ({"server": service.url}, {"dicomweb": f"{service.url}/dicom-web"}):
            with pytest.raises(ServiceError, match="MONAI_LABEL_TOKEN") as refused:
                send(str(folder), **options)
            assert "wrong" not in str(refused.value)
    monkeypatch.setenv("MONAI_LABEL_TOKEN", "s3cret")
    send(str(folder), server=service.url)
    assert len(service.images) == 3


def test_wrong_words_are_told_before_anything_is_sent_and_weights_of_nobody_after(
    send, folder, service, tmp_path, capsys
):
    for limit in (0, -1, 1.5, "all", True):
        with pytest.raises(SettingsError):
            send(str(folder), server=service.url, limit=limit)
    with pytest.raises(DatasetError):
        send(str(tmp_path / "images"), server=service.url)
    assert not service.images
    assert model_of(folder, BUNDLES) == UNKNOWN_MODEL
    send(str(folder), server=service.url, limit=1)
    assert "--model" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cxr_dino_latent_diffusion", "dental_radiograph_segmentation"])
def test_shipped_samples_can_be_sent_and_know_their_model(send, service, name):
    samples = BUNDLES / name / "samples"
    assert model_of(samples, BUNDLES).startswith(f"{name} ")
    send(str(samples), server=service.url, limit=2)
    assert len(service.images) == 2 and all(
        image["params"]["model"].startswith(name) for image in service.images.values()
    )
    assert not [image for image in synthetic_images(samples, "m") if image.problem]
