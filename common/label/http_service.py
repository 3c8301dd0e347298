"""A web service to send files to, by the standard library alone: one request, and errors that say what to do."""

from __future__ import annotations

import http.client
import ipaddress
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import UserError

TIMEOUT_S = 60.0


class ServiceError(UserError, OSError):
    """A service is away, is another than expected, or lets nobody in."""


class LogInError(ServiceError):
    """A service lets nobody in without a valid token."""


@dataclass(frozen=True)
class Reply:
    """What a service answered, whatever its status.

    Attributes:
        status: of HTTP.
        body: its bytes.
    """

    status: int
    body: bytes

    def json(self) -> object:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def reason(self) -> str:
        """Why a request was refused, in one line of at most 300 characters; FastAPI has it under "detail"."""
        found = self.json()
        detail = found.get("detail") if isinstance(found, dict) else None
        text = str(detail) if detail else self.body.decode("utf-8", errors="replace")
        return f"status {self.status}: {' '.join(text.split())[:300] or 'no reason given'}"


class HttpService:
    """A service at one address.

    Args:
        url: http:// or https://, with a path if need be; a final slash makes no difference.
        token: sent as `Authorization: Bearer`; "" for none.
        timeout_s: for each request.

    Raises:
        ServiceError: the URL is none.
    """

    def __init__(self, url: str, token: str = "", timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ServiceError(f"{url}: found no address of a service; expected one such as http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self.token = token
        self.timeout_s = timeout_s
        # A proxy of the environment cannot reach this machine's own loopback.
        proxies = [urllib.request.ProxyHandler({})] if _is_loopback(parts.hostname) else []
        self._opener = urllib.request.build_opener(_NoRedirects, *proxies)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request; redirects are not followed.

        Args:
            method: of HTTP.
            path: below the service's address, with its query, both quoted already.
            body: bytes, or None.
            headers: beside authorization.

        Raises:
            ServiceError: nothing answers.
            LogInError: it wants a token, or another one (401, 403).
        """
        request = urllib.request.Request(f"{self.url}/{path.lstrip('/')}", body, dict(headers or {}), method=method)
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            with self._opener.open(request, timeout=self.timeout_s) as answer:
                reply = Reply(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                reply = Reply(error.code, error.read())
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error or type(error).__name__
            raise ServiceError(
                f"{self.url}: found no service ({cause}); expected it to answer. Start it, or check the address."
            ) from error
        if reply.status in (401, 403):
            raise LogInError(
                f"{self.url}: found a service that asks for a log-in ({reply.reason()}); expected to be let in."
            )
        return reply


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Images and tokens go to the address that was given and nowhere else."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


def multipart_form(
    fields: Mapping[str, str], files: Sequence[tuple[str, str, str, bytes]]
) -> tuple[bytes, dict[str, str]]:
    """Encode a form with files (RFC 7578).

    Args:
        fields: texts by name.
        files: name of the field, name of the file, media type and content of each; names without quotes.

    Returns:
        Body, and headers.
    """
    parts = [(f'form-data; name="{name}"', "", value.encode()) for name, value in fields.items()]
    parts += [(f'form-data; name="{field}"; filename="{name}"', kind, data) for field, name, kind, data in files]
    chunks = []
    for disposition, kind, data in parts:
        chunks.append((f"Content-Disposition: {disposition}\r\n" + (f"Content-Type: {kind}\r\n" if kind else ""), data))
    return _multipart(chunks, "multipart/form-data")


def multipart_related(kind: str, contents: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """Encode parts of one media type (RFC 2387), as STOW-RS takes them (PS3.18 8.6.1.2)."""
    return _multipart([(f"Content-Type: {kind}\r\n", data) for data in contents], f'multipart/related; type="{kind}"')


def _multipart(parts: Sequence[tuple[str, bytes]], kind: str) -> tuple[bytes, dict[str, str]]:
    boundary = secrets.token_hex(16)  # not in the data but once in 2^128
    body = b"".join(f"--{boundary}\r\n{headers}\r\n".encode() + data + b"\r\n" for headers, data in parts)
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"{kind}; boundary={boundary}"}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
