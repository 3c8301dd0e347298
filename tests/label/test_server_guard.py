"""The doors of MONAI Label's server, tried from outside; those that need a real process are in test_server.py."""

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import numpy as np
import pytest
from label_data import MODEL, SIZE, infer, png_labels, save_label, truth_folder, upload
from monailabel.config import settings
from PIL import Image

from common.label import server_guard
from common.label.client_requests import new_request_folder, remove_stale_request_folders

JSON = {"content-type": "application/json"}


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def open_session(client, name, content, expect=200, **query):
    answer = client.put("/session/", params=query, files={"files": (name, content)})
    assert answer.status_code == expect, answer.text
    return answer.json()


def archives(outside):
    """Archives that unpack to elsewhere or to too much, by name."""
    members = {"absolute": str(outside), "parent": "../" * 20 + str(outside)[1:]}
    for name, target in members.items():
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(target), io.BytesIO())
        yield f"{name}.tar", file.getvalue()
    link, file = tarfile.TarInfo("link"), io.BytesIO()
    link.type, link.linkname = tarfile.SYMTYPE, str(outside.parent)
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo(f"link/{outside.name}"), io.BytesIO())
    yield "link.tar", file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(10_000_000))
    yield "bomb.zip", file.getvalue()


def test_session_tar_cannot_leave_its_folder(client, tmp_path, temporary):
    outside = tmp_path / "outside" / "file"
    outside.parent.mkdir()
    for name, content in archives(outside):
        assert "expected one radiograph" in open_session(client, name, content, 400, uncompress=True)["detail"], name
    assert not list(outside.parent.iterdir()) and not list(temporary.iterdir())
    assert not (tmp_path / "studies_sessions").exists()


def test_session_ids_are_no_paths(client, studies, tmp_path):
    known = open_session(client, "tooth.png", (studies / "tooth_0.png").read_bytes())["session_id"]
    victim = tmp_path / "victim"
    victim.mkdir()
    for image in ("/nowhere", str(studies / "tooth_0.png")):  # MONAI Label removes a session whose image is gone
        (victim / "meta.info").write_text(json.dumps({"name": "x", "path": str(victim), "image": image}))
        for session in ("../victim", str(victim), f"{known}/../../victim"):
            answer = client.post(f"/infer/{MODEL}", params={"session_id": session})
            assert answer.status_code == 404, answer.text
    assert client.get("/session/%2e%2e").status_code == 404
    assert (victim / "meta.info").exists()


def test_session_of_one_radiograph_is_segmented_and_removed(client, studies, tmp_path):
    session = open_session(client, "tooth.png", (studies / "tooth_0.png").read_bytes())["session_id"]
    answer = client.post(f"/infer/{MODEL}", params={"session_id": session, "output": "image"})
    assert answer.content == infer(client, "tooth_0")[0]
    assert client.get(f"/session/{session}", params={"image": True}).content == (studies / "tooth_0.png").read_bytes()
    assert client.delete(f"/session/{session}").status_code == 200
    assert client.get(f"/session/{session}").status_code == 404
    assert not list((tmp_path / "studies_sessions").iterdir())


def test_pages_of_other_origins_are_refused(client, studies):
    requests = [
        ("DELETE", "/datastore/image?id=tooth_0"),
        ("POST", "/reload"),
        ("GET", "/datastore/image?image=tooth_0"),
    ]
    origins = ("http://evil.example", "null", "https://testserver", "http://testserver:81", "http://testserver.evil")
    for origin, (method, url) in itertools.product(origins, requests):
        answer = client.request(method, url, headers={"origin": origin})
        assert answer.status_code == 403 and "Origin: found" in answer.json()["detail"]
        preflight = client.options(url, headers={"origin": origin, "access-control-request-method": method})
        assert preflight.status_code == 400
        assert not {"access-control-allow-origin"} & {*answer.headers, *preflight.headers}
    assert (studies / "tooth_0.png").exists()


def test_other_hosts_are_refused_and_own_ones_and_programs_let_in(client):
    hosts = ("evil.example", "evil.example:8000", "127.0.0.1.evil", "x@localhost", "localhost.", "", "[::2]")
    urls = (("GET", "/info/"), ("PUT", "/datastore/image"), ("GET", "/static/x"))
    for host, (method, url) in itertools.product(hosts, urls):
        answer = client.request(method, url, headers={"host": host, "x-forwarded-host": "testserver"})
        assert answer.status_code == 400 and "Host: found" in answer.json()["detail"], host
    for headers in ({"origin": "http://testserver"}, {}, {"host": "localhost:1234"}):
        assert client.get("/info/", headers=headers).status_code == 200


def infer_by_params(client, params):
    """The refusal of inference whose parameters stand in for what the address says."""
    answer = client.post(f"/infer/{MODEL}", params={"image": "tooth_0"}, data={"params": json.dumps(params)})
    assert answer.status_code == 404
    return answer.json()["detail"]


def test_infer_reads_no_file_of_the_temporary_folder(client, studies, temporary):
    secret, picture = temporary / "tmpsecret.txt", temporary / "tmppicture.png"
    secret.write_text("a secret")
    picture.write_bytes((studies / "tooth_0.png").read_bytes())
    with new_request_folder() as other:  # of a request at the same time
        upload_of_other = other / "tmpupload.png"
        upload_of_other.write_bytes(picture.read_bytes())
        for path in map(str, (secret, picture, upload_of_other)):
            answers = [
                infer(client, path, expect=404),
                infer_by_params(client, {"image": path}),
                infer_by_params(client, {"image": path, "session": {"image": path, "name": "x"}}),
            ]
            batch = client.post(f"/batch/infer/{MODEL}", params={"run_sync": True}, json={"images": [path]})
            assert batch.status_code == 200
            assert all("found no" in answer for answer in (*answers, batch.json()[path]["error"]))
            assert "a secret" not in f"{answers}{batch.text}"
        assert upload_of_other.exists()
    assert {path.name for path in temporary.iterdir()} == {secret.name, picture.name}


def test_files_of_a_request_go_with_it(client, studies, tmp_path, temporary):
    (tmp_path / "broken.png").write_text("no picture")
    assert infer(client, "", file=studies / "tooth_1.png")[0]
    infer(client, "", expect=400, file=tmp_path / "broken.png")
    save_label(client, "tooth_0", truth_folder(studies) / "tooth_0.png")
    upload(client, "new", studies / "tooth_1.png")
    assert zipfile.is_zipfile(io.BytesIO(client.get("/datastore/dataset").content))
    assert not list(temporary.iterdir())


def test_folders_of_requests_of_killed_servers_are_removed_after_an_hour(temporary):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folders = [
        temporary / f"label_request_{server}_{kind}" for server in (ended.pid, os.getpid()) for kind in ("new", "old")
    ]
    for folder in folders:
        folder.mkdir()
        (folder / "upload.png").touch()
        if folder.name.endswith("old"):
            os.utime(folder, (0, 0))
    remove_stale_request_folders()
    assert [folder.exists() for folder in folders] == [True, False, True, True]


WRONG = [
    *[("params", text) for text in ("5", "[]", '"x"', "null", "{", "[" * 9000, '{"a": NaN}', '{"a": 1e999}')],
    ("params", '{"note": "\\ud800"}'),
    ("params", '{"note": "a\\u0000b"}'),
    ("result_extension", '{"result_extension": 5}'),
    ("result_extension", '{"result_extension": [".png"]}'),
    *[("device", json.dumps({"device": name})) for name in ("xpu", "meta", "cpu:x", 5, True, {}, ["tpu"])],
    ("model", '{"model": ["tiny_segmentation"]}'),
]


def test_wrong_params_are_refused_with_a_sentence(client):
    tasks = (f"/train/{MODEL}", "/scoring/epistemic", f"/batch/infer/{MODEL}", "/activelearning/first", "/train/")
    for name, params in WRONG:
        answer = client.post(f"/infer/{MODEL}", params={"image": "tooth_0"}, data={"params": params})
        assert answer.status_code == 400 and f"{name}: found" in answer.json()["detail"], params
        for url in tasks if params != "null" else ():
            answer = client.post(url, params={"run_sync": True}, content=params, headers=JSON)
            assert answer.status_code == 400 and "expected" in answer.json()["detail"], (url, params)
        for what in ("image", "label") if name == "params" else ():
            query = {what: "tooth_0", "tag": "final"}
            answer = client.put(f"/datastore/{what}/info", params=query, data={"info": params})
            assert answer.status_code == 400 and "info: found" in answer.json()["detail"], params
    assert client.get("/datastore/", params={"output": "all"}).status_code == 200


def test_wrong_bodies_and_params_of_one_of_several_tasks_are_refused(client):
    for body, kind in (
        (b"\xff", "text/plain"),
        (b"\xff", "application/x-www-form-urlencoded"),
        (b"x", "multipart/form-data"),
    ):
        answer = client.post(f"/train/{MODEL}", content=body, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500 and isinstance(answer.json()["detail"], str)
    for url, name in (("/train/", MODEL), ("/scoring/", "epistemic")):
        answer = client.post(url, params={"run_sync": True}, json={name: 5})
        assert answer.status_code == 400 and f"{name}: found 5" in answer.json()["detail"]
    assert client.post("/scoring/other", params={"run_sync": True}).status_code == 404
    assert client.post(f"/infer/{MODEL}").status_code == 400
    query = {"image": "tooth_0", "output": "dicom_seg"}
    assert client.post(f"/infer/{MODEL}", params=query, data={"params": '{"label_info": [{}]}'}).status_code == 400


def test_notes_that_the_server_goes_by_cannot_be_written_from_outside(client, studies):
    for note in ({"epistemic": 5}, {"strategy": "x"}):
        answer = client.put("/datastore/image/info", params={"image": "tooth_0"}, data={"info": json.dumps(note)})
        assert answer.status_code == 400
    for strategy in ("epistemic", "first"):
        assert client.post(f"/activelearning/{strategy}", json={}).status_code == 200
    answer = client.put("/datastore/image/info", params={"image": "tooth_0"}, data={"info": '{"quality": "good"}'})
    assert answer.status_code == 200
    assert client.get("/datastore/image/info", params={"image": "tooth_0"}).json()["quality"] == "good"


def test_names_that_are_none_are_refused_with_a_sentence(client, studies):
    picture = (studies / "tooth_0.png").read_bytes()
    for name in ("a\0b", "x" * 300, "é" * 200, "a\nb"):
        refuse_name(client, name, picture)

    assert client.get("/logs/", params={"lines": 10**30}).status_code == 400
    assert client.head("/datastore/image", params={"image": "tooth_0", "check_sum": "x:y"}).status_code == 400
    for name in (".", ".."):
        assert "name of files" in open_session(client, name, picture, 400)["detail"]


def refuse_name(client, name, picture):
    requests = [
        ("POST", f"/infer/{MODEL}", {"image": name}),
        ("GET", "/datastore/image", {"image": name}),
        ("DELETE", "/datastore/image", {"id": name}),
        ("PUT", "/datastore/image/info", {"image": name}),
        ("GET", "/datastore/label", {"label": name, "tag": "final"}),
        ("DELETE", "/datastore/label", {"id": "tooth_0", "tag": name}),
        ("POST", f"/infer/{MODEL}", {"session_id": name}),
        ("PUT", "/datastore/label", {"image": name}),
    ]
    for method, url, query in requests:
        files = {"label": ("a.png", picture)} if url == "/datastore/label" and method == "PUT" else None
        answer = client.request(method, url, params=query, files=files)
        assert answer.status_code == 400 and "expected a name" in answer.json()["detail"], url
    for method, url, field in (("POST", f"/infer/{MODEL}", "file"), ("PUT", "/session/", "files")):
        head = f'--x\r\ncontent-disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        body = head + picture + b"\r\n--x--\r\n"
        answer = client.request(method, url, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
        assert 400 <= answer.status_code < 500 and answer.json()["detail"]


def test_too_large_bodies_are_refused(client, studies, temporary, monkeypatch):
    monkeypatch.setattr(server_guard, "MAX_BODY_BYTES", 100_000)
    answer = client.put("/datastore/image?image=new", files={"file": ("new.png", bytes(200_000))})
    assert answer.status_code == 413 and "expected" in answer.json()["detail"]
    assert not list(temporary.iterdir()) and not (studies / "new.png").exists()


def test_weights_are_neither_replaced_nor_removed_from_outside(client, tiny_bundle):
    weights = tiny_bundle / "models" / "model.pt"
    before = {path.name: path.read_bytes() for path in weights.parent.iterdir()}
    assert client.put(f"/model/{MODEL}", files={"file": ("model.pt", b"other")}).status_code == 405
    assert client.delete(f"/model/{MODEL}").status_code == 405
    assert weights.name in before and {path.name: path.read_bytes() for path in weights.parent.iterdir()} == before
    assert client.get(f"/model/{MODEL}").content == before[weights.name]


def test_what_the_server_has_not_is_refused_with_a_sentence(client, tmp_path, monkeypatch):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "slide.tif")
    for url in (f"/infer/wsi/{MODEL}", f"/infer/wsi_v2/{MODEL}"):
        assert client.post(url, params={"image": str(tmp_path / "slide.tif")}).status_code == 404
    assert client.get("/proxy/dicom/studies").status_code == 404
    page = client.get("/ohif/").content
    assert b"<html" in page
    assert all(client.get(f"/ohif/{folder}").content == page for folder in ("assets", "viewer", "%2e%2e"))
    monkeypatch.setenv("PATH", "")
    gpu = client.get("/logs/gpu")
    assert gpu.status_code == 404 and "nvidia-smi" in gpu.json()["detail"]
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSIONS", False)
    session = client.post(f"/infer/{MODEL}", params={"session_id": "0" * 36})
    assert session.status_code == 406 and "session_id" in session.json()["detail"]


def test_what_clients_send_is_let_in(client, studies):
    """Headers, names and values as 3D Slicer, OHIF and MONAI Label's own client send them."""
    params = {
        "device": None,
        "result_extension": ".png",
        "result_dtype": "uint8",
        "client_id": "user-1",
        "flips": False,
    }
    devices = client.get("/info/").json()["models"][MODEL]["config"]["device"]
    for device in (None, "", "cpu", "cuda", "cuda:0", devices, devices[0]):
        assert png_labels(infer(client, "tooth_0", **{**params, "device": device})[0]).shape == SIZE
    path = studies / "C:\\Users\\a.user\\picture.png"  # the whole path is the name, from Windows
    path.write_bytes((studies / "tooth_0.png").read_bytes())
    assert png_labels(infer(client, "", file=path)[0]).shape == SIZE
