"""What stands before MONAI Label's endpoints, which trust whoever reaches them.

A request has to be meant for this server, to come from a program or from a page that may send one, to be logged in
where there is a login, and to hold values that the endpoints can take. The app itself puts the guard in place, so that
there is no way to start the server without.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import requests
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelException
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import UserError
from .client_requests import (
    check_body,
    check_name,
    check_query,
    keep_files_in_request_folder,
    new_request_folder,
    remove_stale_request_folders,
    request_folder,
)
from .services import ServiceError

MAX_BODY_BYTES = 2**29  # 512 MiB; a radiograph of 144 megapixels of 16 bits is 275 MiB
SERVER_PID = "MONAI_LABEL_SERVER_PID"  # in the environment of what the server starts
WATCH_SECONDS = 0.5
TOLD = (UserError, AnyHTTPException, MONAILabelException, RequestValidationError, requests.RequestException)

_logger = logging.getLogger(__name__)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d+)?")
_WITHOUT_LOGIN = re.compile(r"/(info|auth|auth/token)/?")  # the last two are where one logs in
_ARCHIVE = re.compile(r"/proxy/dicom/((wado|qido|stow)/)?(studies|series|instances)(/(?!\.)[\w.,-]+)*/?")
_CLOSED = (  # method and path, status and reason
    (r"\w+ /infer/wsi(_v2)?/.*", 404, "found whole-slide inference; expected /infer/MODEL for a radiograph."),
    (r"(PUT|DELETE) /model/.*", 405, "weights change by training, and its use_version goes back to others."),
)


class ServerGuard:
    """ASGI middleware that lets a request in to the app behind, or answers it with 4xx and a sentence.

    Starlette's own for hosts knows no address that the server was reached by, and answers without saying what to do.
    `origins` are of the pages that may send requests beside the server's own; their hosts are names of the server.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app = app
        self.origins = set(origins)
        self.hosts = {_host_name(urlsplit(origin).netloc) for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, by what comes behind if the request may go there."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        with new_request_folder():
            try:
                self._check_sender(request)
                await _check_login(request)
                _check_target(request)
                receive = await _checked_body(request)
            except ClientDisconnect:
                return
            except TOLD as error:
                await (await _answer(request, error))(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    def _check_sender(self, request: Request) -> None:
        """Other sites' pages could send what the user's browser may, or have their own name point to this server."""
        hosts, origin = request.headers.getlist("host"), request.headers.get("origin", "").lower()
        host = hosts[0].lower() if len(hosts) == 1 else ""
        reached_at = (request.scope.get("server") or ("",))[0]  # the address of this end of the connection
        if not _host_name(host) or _host_name(host) not in {*self.hosts, reached_at}:
            raise UserError(
                f"Host: found {', '.join(hosts)[:80]!r}; expected an address of this server. If it has another name, "
                "start it with MONAI_LABEL_CORS_ORIGINS='[\"http://NAME:PORT\"]'."
            )
        if origin and origin not in {*self.origins, f"{request.scope['scheme']}://{host}"}:
            raise HTTPException(
                403,
                f"Origin: found {origin[:80]!r}; expected a page of this server. To let in a viewer of another one, "
                "start this one with its origin in MONAI_LABEL_CORS_ORIGINS.",
            )


def _host_name(host: str) -> str:
    """Of a Host header, without the port and the brackets of IPv6; "" where it is none."""
    match = _HOST.fullmatch(host)
    return match[1].strip("[]") if match else ""


def _path(request: Request) -> str:
    return str(request.scope["path"]).removeprefix(request.scope.get("root_path", ""))


async def _check_login(request: Request) -> None:
    """Where a login is set, every path needs one, but those that say what the server is and how to log in."""
    from monailabel.endpoints.user.auth import RBAC, get_current_user

    if not settings.MONAI_LABEL_AUTH_ENABLE or _WITHOUT_LOGIN.fullmatch(_path(request)):
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise HTTPException(401, "found no login; expected one by /auth/token.", {"WWW-Authenticate": "Bearer"})
    user = await get_current_user(token.strip())
    await RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN if _path(request).startswith("/reload") else "*")(user)


def _check_target(request: Request) -> None:
    """Refuse names that are none, what is not there, what radiographs do not need, and ways out of the archive."""
    path = _path(request)
    check_name("path", path, 2000)
    check_query(request)
    for pattern, status, reason in _CLOSED:
        if re.fullmatch(pattern, f"{request.method} {path}"):
            raise HTTPException(status, f"{path}: {reason}")
    if path.startswith("/proxy") and not (settings.MONAI_LABEL_STUDIES.startswith("http") and _ARCHIVE.fullmatch(path)):
        raise HTTPException(404, f"{path}: expected studies, series or instances of an archive that is served.")
    if path.startswith("/logs/gpu") and not shutil.which("nvidia-smi"):
        raise HTTPException(404, f"{path}: found no nvidia-smi; expected it where there is a GPU.")
    if request.query_params.get("session_id") and not settings.MONAI_LABEL_SESSIONS:
        raise HTTPException(406, "session_id: found one; expected none while MONAI_LABEL_SESSIONS is off.")


async def _checked_body(request: Request) -> Receive:
    """Take the body into the request's folder, check it, and give what reads it from there."""
    path, size = request_folder() / "body", 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            size += file.write(chunk)
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, f"found more than {MAX_BODY_BYTES} bytes; expected one radiograph.")
    if size and not _path(request).startswith("/proxy"):
        await check_body(Request(request.scope, _reader_of(path, request.receive)), _path(request))
    return _reader_of(path, request.receive)


def _reader_of(path: Path, receive: Receive) -> Receive:
    file = path.open("rb")

    async def read() -> Message:
        if file.closed:
            return await receive()
        chunk = file.read(2**20)
        if not chunk:
            file.close()
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    return read


async def _answer(request: Request, error: Any) -> Response:
    """Errors as clients get them: status and what to do about it; MONAI Label by itself gives an empty 500."""
    status, detail, headers = 400, str(error), None
    if isinstance(error, AnyHTTPException):
        # 500 is MONAI Label's word for what is missing in a request.
        status, detail, headers = 400 if error.status_code == 500 else error.status_code, error.detail, error.headers
    elif isinstance(error, MONAILabelException):
        status, detail = 404, error.msg
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]  # the stock answer repeats what came in, which may be no text
        status, detail = 422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
    elif isinstance(error, ServiceError):
        status = 502
    elif isinstance(error, requests.RequestException):
        reason = f"found no usable answer of the archive or of the login's realm ({type(error).__name__})"
        status, detail = 502, f"{reason}; expected one. Check that it runs, and its address."
        if _path(request).startswith("/auth") and error.response is not None and error.response.status_code < 500:
            status, detail = 401, "login: found a user or a password that the realm refuses."
    return JSONResponse({"detail": detail}, status, headers)


def guard_server(origins: Sequence[str] = ()) -> None:
    """Put the guard before the endpoints of the server in this process; in one that a server started, end with it.

    `origins`, as http://NAME:PORT, are of the pages that may send requests beside the server's own.
    """
    server = sys.modules.get("monailabel.app")
    if server is None:
        _end_with_server()
        return
    os.environ[SERVER_PID] = str(os.getpid())
    app = server.app
    if any(middleware.cls is ServerGuard for middleware in app.user_middleware):
        return
    from monailabel.endpoints import infer, info, ohif
    from monailabel.endpoints.user import auth

    names = ("127.0.0.1", "localhost", "[::1]", socket.gethostname().lower())
    own = [f"{scheme}://{name}:{settings.MONAI_LABEL_SERVER_PORT}" for scheme in ("http", "https") for name in names]
    origins = [*own, *(origin.rstrip("/").lower() for origin in origins)]
    _logger.info("pages that may send requests, whatever else was said: those of this server and %s", origins)
    # In place of the stock one, which lets in all.
    cors = Middleware(CORSMiddleware, origins, allow_methods=["*"], allow_headers=["*"], allow_credentials=True)
    app.user_middleware[:] = [cors, Middleware(ServerGuard, origins)]
    for kind in TOLD:
        app.add_exception_handler(kind, _answer)
    app.router.routes.insert(0, APIRoute("/info/", info.app_info, include_in_schema=False))  # without a login
    app.middleware_stack = app.build_middleware_stack()  # the app is loaded when the server has begun to start
    keep_files_in_request_folder()
    remove_stale_request_folders()
    infer.binary_to_image = _no_scribbles
    ohif.get_ohif = functools.partial(_page_of_ohif, ohif.get_ohif)
    # PyJWT takes no token without being told which signatures count, so that nobody could log in.
    rsa = [f"{kind}{bits}" for kind in ("RS", "PS") for bits in (256, 384, 512)]
    auth.jwt = SimpleNamespace(decode=functools.partial(auth.jwt.decode, algorithms=rsa))


def _no_scribbles(*_: Any) -> str:
    raise UserError("label: found scribbles; expected none, as no model here takes any.")


def _page_of_ohif(stock: Callable[[str], Response], path: str) -> Response:
    """A file of the viewer, or its start page, which tells addresses apart itself; a folder is no file to send."""
    answer = stock(path)
    return stock("") if Path(getattr(answer, "path", "")).is_dir() else answer


def _end_with_server() -> None:
    """End this process soon after the server that started it, however that ended; without one, do nothing."""
    if SERVER_PID not in os.environ:
        return

    def watch() -> None:
        while os.getppid() == int(os.environ[SERVER_PID]):  # an orphan gets another parent at once
            time.sleep(WATCH_SECONDS)
        os._exit(1)  # as if killed, which everything that is written here survives

    threading.Thread(target=watch, daemon=True).start()
