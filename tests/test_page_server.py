"""The server of a page: whom it answers, and how much it takes."""

import http.client
import io
import json
import threading

import pytest

from common.errors import SettingsError
from common.page_server import PageServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "page.html"
    page.write_text("the page")

    def post(path, upload):
        body = io.BytesIO()
        upload.save(body, 10)
        if path == "/broken":
            raise RuntimeError("secret")
        if path == "/refused":
            raise SettingsError("found nothing")
        return {"name": upload.name, "body": body.getvalue().decode()}

    server = PageServer(0, {"/": page, "/about": {"answer": 42}}.get, post)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_page_may_ask_nobody_else(server):
    status, text, headers = ask(server, "/")
    assert (status, text) == (200, "the page") and headers["Content-Type"] == "text/html"
    allowed = headers["Content-Security-Policy"]
    assert "default-src 'none'" in allowed and "http" not in allowed and "*" not in allowed
    assert json.loads(ask(server, "/about")[1]) == {"answer": 42}
    assert ask(server, "/other")[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "radiographs.example"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://radiographs.example"},
        {"Origin": "null"},
    ],
)
def test_other_sites_are_refused(server, headers):
    assert ask(server, "/", **headers)[0] == 403 and ask(server, "/", b"x", **headers)[0] == 403


def test_its_own_names_are_not_refused(server):
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{server.server_port}"
        status, text, _ = ask(server, "/x", b"body", Host=host, Origin=f"http://{host}", **{"X-Name": "B%C3%A4r.png"})
        assert status == 200 and json.loads(text) == {"name": "Bär.png", "body": "body"}


def test_uploads_end_at_their_limit(server):
    assert ask(server, "/x", b"1234567890")[0] == 200
    assert ask(server, "/x", b"12345678901")[0] == 413
    assert ask(server, "/x", b"", **{"Content-Length": "-5"})[0] == 413


def test_errors_are_told_and_those_of_the_program_only_in_the_terminal(server, capfd):
    status, text, _ = ask(server, "/refused", b"")
    assert status == 400 and json.loads(text) == {"error": "found nothing"}
    status, text, _ = ask(server, "/broken", b"")
    assert status == 500 and "secret" not in text and "secret" in capfd.readouterr().err


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(SettingsError):
        PageServer(server.server_port, {}.get, lambda path, upload: {})
