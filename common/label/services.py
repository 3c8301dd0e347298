"""Services that are not ours, and generated radiographs sent to them: MONAI Label's datastore, or a DICOMweb archive.

Nobody shall take them for patients: their names begin with `synthetic_`, what made them goes along, and only images
that a manifest calls synthetic are sent. Names hold a hash of the content, so that the same image is sent once, and
the same number of another run is another image.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.errors import InvalidDicomError

from ..data.datalist_sources import MANIFEST_NAME, manifest_items
from ..errors import DatasetError, UserError
from ..files import read_json
from ..io import read_radiograph
from ..io.dicom_dx import DxSettings, dx_dataset, write_dx

TIMEOUT_S = 60.0  # without an answer; the clients of MONAI Label wait as long
NAME_PREFIX = "synthetic_"
SOURCE = "radiograph-diffusion-bundles"
# Not the sources nor their patients: they may name people. See ManifestRow.provenance.
PROVENANCE_COLUMNS = (
    *("strategy", "seed", "num_inference_steps", "guidance_scale", "method", "weights_sha256", "mix", "label"),
    "flagged",
)
UNKNOWN_MODEL = "unknown model"
TOKEN = "MONAI_LABEL_TOKEN"
LOG_IN = f"a valid token in the environment as {TOKEN}"


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


# ---- synthetic images ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticImage:
    """A generated image with where it comes from."""

    path: Path  # of the file
    model: str  # what generated it, name and version
    provenance: dict[str, str]  # how, by column of the manifest
    problem: str = ""  # why it must not be sent; "" if it may


def synthetic_images(folder: str | Path, model: str) -> list[SyntheticImage]:
    """The images that the manifest of a generated folder lists, in its order; `model` generated them.

    Raises:
        DatasetError: no manifest, or one that cannot be used.
    """
    root, images = Path(folder).expanduser().resolve(), []
    if not (root / MANIFEST_NAME).is_file():
        raise DatasetError(f"{folder}: found no {MANIFEST_NAME}; expected a folder that a generation has written")
    for item in manifest_items(root):
        path, problem = Path(item["image"]), ""
        if item.get("synthetic", "").lower() != "true":
            problem = "the manifest does not call it synthetic; images of patients are not for this command"
        elif item.get("flagged", "").lower() == "yes":
            problem = "the privacy check took it for a copy of a patient's image"
        elif not path.resolve().is_relative_to(root):
            problem = "it lies outside of the folder"
        provenance = {name: item[name] for name in PROVENANCE_COLUMNS if item.get(name)}
        images.append(SyntheticImage(path, model, provenance, problem))
    return images


def model_of(folder: str | Path, bundles: Path) -> str:
    """Name and version of the shipped bundle that generated a folder, by the weights' hash; else `UNKNOWN_MODEL`.

    The samples that each of the bundles ships name its weights.
    """

    def weights(manifest: Path) -> set[str]:
        if not manifest.is_file():
            return set()
        with manifest.open(newline="", encoding="utf-8") as file:
            return {record.get("weights_sha256") or "" for record in csv.DictReader(file)} - {""}

    mine = weights(Path(folder).expanduser() / MANIFEST_NAME)
    for metadata in sorted(bundles.glob("*/configs/metadata.json")):
        bundle = metadata.parents[1]
        if len(mine) == 1 and mine == weights(bundle / "samples" / MANIFEST_NAME):
            return f"{bundle.name} {read_json(metadata)['version']}"
    return UNKNOWN_MODEL


class LabelDatastore:
    """The datastore of a running MONAI Label server; a token is of a login, "" for none.

    `client_name` is the client_id that the server keeps with each image.

    Raises:
        ServiceError: what answers there is no MONAI Label server, or lets nobody in.
    """

    def __init__(self, url: str, token: str, client_name: str) -> None:
        self.url = url.rstrip("/")
        self.client_name = client_name
        self._session = _session(url, token)
        with asking(self.url, LOG_IN):
            info = self._ask("GET", "/info/").json()
            if "models" not in info:
                raise ValueError("no MONAI Label server; an archive is given as --dicomweb")

    def send(self, image: SyntheticImage) -> tuple[str, bool]:
        """Send one image unless the server has it; returns its name there and whether it was there already.

        Raises:
            UserError: it is unreadable, or refused.
            ServiceError: the server gives no usable answer.
        """
        read_radiograph(image.path)  # a bad file is not for the server to find out
        data = image.path.read_bytes()
        name = upload_name(image.path, data)
        query = {"image": name}
        who = {"client_id": self.client_name, "source": SOURCE, "synthetic": True, "model": image.model}
        with asking(self.url, LOG_IN):
            if self._ask("HEAD", "/datastore/image", params=query).ok:
                return name, True
            form = {"params": json.dumps({**who, **image.provenance})}
            files = {"file": (name + _suffix(image.path), data)}
            reply = self._ask("PUT", "/datastore/image", params=query, data=form, files=files)
            if not reply.ok or reply.json().get("image") != name:
                reason = " ".join(reply.text.split())[:300]
                raise UserError(f"the server did not take it, status {reply.status_code}: {reason}")
        return name, False

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        reply = self._session.request(method, self.url + path, **options)
        if reply.status_code in (401, 403):
            reply.raise_for_status()
        return reply


class DicomWebArchive:
    """A DICOMweb archive such as Orthanc's, by the URL of its root; images become DX files (see `DxSettings`).

    A token is of a login, "" for none.
    """

    def __init__(self, url: str, token: str, body_part: str = "", modality: str = "DX") -> None:
        self.url = url.rstrip("/")
        self.body_part = body_part
        self.modality = modality
        with asking(self.url, LOG_IN):
            self._client = DICOMwebClient(self.url, _session(url, token))
        self._client.set_http_retry_params(retry=False)

    def send(self, image: SyntheticImage) -> tuple[str, bool]:
        """Store one image unless the archive has it; result and errors as of `LabelDatastore.send`."""
        radiograph = read_radiograph(image.path)
        settings = DxSettings(modality=self.modality, body_part=self.body_part, model=image.model)
        dataset = dx_dataset(radiograph.pixels, settings, radiograph.spacing_mm, provenance=image.provenance)
        found = {"StudyInstanceUID": str(dataset.StudyInstanceUID), "SOPInstanceUID": str(dataset.SOPInstanceUID)}
        with tempfile.TemporaryDirectory() as folder, asking(self.url, LOG_IN):
            if self._client.search_for_instances(search_filters=found):
                return found["SOPInstanceUID"], True
            written = pydicom.dcmread(write_dx(dataset, Path(folder) / "image.dcm", radiograph.pixels))
            try:
                answer = self._client.store_instances([written])
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code not in (400, 409):
                    raise
                raise UserError(f"the archive did not store it ({error})") from error
        if answer.get("FailedSOPSequence"):
            raise UserError("the archive did not store it")
        return found["SOPInstanceUID"], False


def _session(url: str, token: str) -> requests.Session:
    """Images and the token go to the address that was given and nowhere else: redirects are errors."""

    def with_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    session = limited(requests.Session(), url)
    session.max_redirects = 0
    session.auth = with_token if token else None
    return session


def upload_name(path: Path, data: bytes) -> str:
    """`synthetic_<file's name>_<first 8 digits of the content's SHA-256>`, of letters, digits, - and _."""
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", path.name.removesuffix(_suffix(path)))[:64]
    return f"{NAME_PREFIX}{stem}_{hashlib.sha256(data).hexdigest()[:8]}"


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
