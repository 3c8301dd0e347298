"""Addresses, replies and forms; requests are tested in test_label_upload.py over loopback."""

from email.parser import BytesParser
from email.policy import HTTP

import pytest

from common.label.http_service import HttpService, Reply, ServiceError, multipart_form, multipart_related


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "file:///etc/passwd", "ftp://host/a", "http://", "http://h/?a=b", ""]
)
def test_what_is_no_address_is_told(url):
    with pytest.raises(ServiceError, match="expected one such as http"):
        HttpService(url)


def test_final_slash_makes_no_difference():
    assert HttpService("http://localhost:8000/").url == HttpService("http://localhost:8000").url


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"detail": "no\\n radiograph"}', "status 400: no radiograph"),
        (b"Internal Server Error", "status 400: Internal Server Error"),
        (b"", "status 400: no reason given"),
        (b"\xff" * 999, "status 400: " + "�" * 300),
    ],
)
def test_reason_is_one_short_line(body, reason):
    assert Reply(400, body).reason() == reason


def parsed(body, headers):
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    return list(message.iter_parts())


def test_form_comes_back():
    data = bytes(range(256)) * 3 + b"\r\n--"
    text, file = parsed(*multipart_form({"params": '{"ä": 1}'}, [("file", "a.png", "image/png", data)]))
    assert text.get_payload(decode=True).decode() == '{"ä": 1}'
    assert file.get_filename() == "a.png" and file.get_content_type() == "image/png"
    assert file.get_payload(decode=True) == data


def test_related_parts_come_back():
    body, headers = multipart_related("application/dicom", [b"one", b"two\x00"])
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert [part.get_payload(decode=True) for part in parsed(body, headers)] == [b"one", b"two\x00"]
