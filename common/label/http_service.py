"""Services that are not ours: requests with a time limit, and one error where they give no usable answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests
from pydicom.errors import InvalidDicomError

from ..errors import UserError

TIMEOUT_S = 60.0  # without an answer; the clients of MONAI Label wait as long


class ServiceError(UserError, OSError):
    """A service is away, is another than expected, or lets nobody in."""


def limited(session: requests.Session, url: str) -> requests.Session:
    """Let a session give up after a while, and reach this machine's own loopback, which is behind no proxy.

    Without a time limit requests would wait for ever, and a whole server with them.
    """
    host = urlsplit(url).hostname or ""
    proxies = {"no_proxy": host} if re.fullmatch(r"localhost|::1|127(\.\d+){3}", host) else {}
    session.request = functools.partial(session.request, timeout=TIMEOUT_S, proxies=proxies)  # type: ignore[method-assign]
    return session


@contextmanager
def asking(url: str, log_in: str) -> Iterator[None]:
    """Within the block, whatever goes wrong with a service or its answer becomes a ServiceError.

    It tells in `log_in` where its user finds what the service wants to know of him.
    """
    try:
        yield
    except UserError:
        raise
    except (requests.RequestException, InvalidDicomError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ServiceError(
            f"{url}: found no usable answer of the service ({reason}); expected one. Check that it runs, its address, "
            f"and the log-in ({log_in})."
        ) from error
