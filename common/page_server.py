"""A page for whoever sits at this machine, and the JSON behind it: no other site reaches it, and it reaches none."""

from __future__ import annotations

import json
import mimetypes
import sys
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from .errors import SettingsError, UserError

STALLED_SECONDS = 60
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    **{"Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"},
    "X-Content-Type-Options": "nosniff",
}


class Refusal(UserError):
    """A request is answered with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Upload:
    """The body of a request; the page says its name, percent-encoded, in the header X-Name."""

    def __init__(self, name: str, length: str, stream: BufferedIOBase) -> None:
        self.name = unquote(name)[-200:]
        self._length, self._stream = length, stream

    def save(self, file: BinaryIO, most: int) -> None:
        """Write it to a file; Refusal where it is longer than `most` bytes, or breaks off."""
        if not self._length.isdecimal() or int(self._length) > most:
            raise Refusal(413, f"found {self._length or 'an unknown number of'} bytes; expected {most} at most")
        left = int(self._length)
        while left:
            chunk = self._stream.read(min(left, 2**20))
            if not chunk:
                raise Refusal(400, "the upload broke off; send it again")
            left -= file.write(chunk)


class PageServer(ThreadingHTTPServer):
    """Answers on 127.0.0.1 to its own page.

    Args:
        port: 0 takes a free one, see `server_port`.
        get: from a path to the file or the JSON to answer with; None where there is nothing.
        post: from a path and a body to the JSON; a UserError becomes {"error": its message}.

    Raises:
        SettingsError: the port cannot be had.
    """

    def __init__(
        self, port: int, get: Callable[[str], Path | dict | None], post: Callable[[str, Upload], dict]
    ) -> None:
        self.get, self.post = get, post
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise SettingsError(f"port {port}: cannot be had ({error}); give another one") from error
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]
        self.address = f"http://{self.hosts[0]}/"

    def handle_error(self, *_: Any) -> None:
        """A browser that goes away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = STALLED_SECONDS
    server: PageServer

    def do_GET(self) -> None:
        self._answer(lambda: self.server.get(self.path))

    def do_POST(self) -> None:
        upload = Upload(self.headers.get("X-Name", ""), self.headers.get("Content-Length", ""), self.rfile)
        self._answer(lambda: self.server.post(self.path, upload))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: there may be names of patients in it."""

    def _answer(self, make: Callable[[], Path | dict | None]) -> None:
        status, found = 200, None
        try:
            self._check_sender()
            found = make()
            if found is None:
                raise Refusal(404, f"{self.path[:80]}: no such page or picture")
        except Exception as error:
            status = error.status if isinstance(error, Refusal) else 400 if isinstance(error, UserError) else 500
            found = {"error": str(error) if status < 500 else f"{type(error).__name__}: the terminal says more"}
            if status == 500:
                traceback.print_exception(error)
        if isinstance(found, Path):
            content, kind = found.read_bytes(), mimetypes.guess_type(found)[0] or "application/octet-stream"
        else:
            content, kind = json.dumps(found).encode(), "application/json"
        self.close_connection |= self.command == "POST" or status != 200  # there may be a rest of the body
        self.send_response(status)
        about = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in {**_HEADERS, **about, **({"Connection": "close"} if self.close_connection else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _check_sender(self) -> None:
        """Another site's page could send requests here, or have its own name point to this machine."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refusal(403, f"Host: expected {self.server.hosts[0]}")
        if origin is not None and origin.lower() not in [f"http://{host}" for host in self.server.hosts]:
            raise Refusal(403, "Origin: expected a page of this server")
