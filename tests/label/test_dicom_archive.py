"""Archives that do not behave; those that do are in test_archive.py."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from label_server import free_port

import common.label.dicom_archive as dicom_archive
from common.io.segmentation_classes import GROUPED
from common.label.dicom_archive import DicomArchive, archive_client
from common.label.http_errors import ArchiveError


def archive_at(port):
    return DicomArchive(archive_client(f"http://127.0.0.1:{port}"), {"Modality": "DX"}, GROUPED)


def test_an_archive_that_is_not_there_or_never_answers_is_given_up(monkeypatch):
    with pytest.raises(ArchiveError, match=r"found no usable answer .*refused.*Check that it runs"):
        archive_at(free_port()).images()
    monkeypatch.setattr(dicom_archive, "TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ArchiveError, match=r"found no usable answer .*timed out"):
            archive_at(silent.getsockname()[1]).labels()


class Replying(BaseHTTPRequestHandler):
    """Answers any request with the server's `reply`: status, media type, body."""

    def do_GET(self):
        status, kind, body = self.server.reply
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def other_service():
    with HTTPServer(("127.0.0.1", 0), Replying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ((200, "text/html", b"<html>a web page</html>"), "JSONDecodeError"),
        ((200, "application/json", b'[{"0020000E": "no element"}]'), "Error"),
        ((401, "text/plain", b"log in"), "401"),
        ((503, "text/plain", b"busy"), "503"),
    ],
)
def test_what_is_no_archive_or_lets_nobody_in_is_said_so(other_service, reply, found):
    other_service.reply = reply
    with pytest.raises(ArchiveError, match=f"found no usable answer of the archive .*{found}"):
        archive_at(other_service.server_port).images()


def test_ids_that_are_no_uids_are_not_asked_for():
    archive = archive_at(free_port())
    for name in ("*", "..", "1..2", "tooth_0", "1.2.", "1" * 65, ""):
        assert archive.image(name) is None
