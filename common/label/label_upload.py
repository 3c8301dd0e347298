"""Generated radiographs as unlabelled images of a MONAI Label datastore, or as DX in a DICOMweb archive.

Nobody shall take them for patients: their names begin with `synthetic_`, what made them goes along, and only images
that a manifest calls synthetic are sent. Names hold a hash of the content, so that the same image is sent once, and
the same number of another run is another image.
"""

from __future__ import annotations

import csv
import hashlib
import json
import mimetypes
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from ..data.datalist_sources import MANIFEST_NAME, DatasetError, manifest_rows
from ..errors import UserError
from ..io import read_radiograph
from ..io.dicom_dx import DxSettings, dx_dataset, write_dx
from .http_service import HttpService, ServiceError, multipart_form, multipart_related

NAME_PREFIX = "synthetic_"
SOURCE = "radiograph-diffusion-bundles"
# Not the sources nor their patients: they may name people. See ManifestRow.provenance.
PROVENANCE_COLUMNS = (
    *("strategy", "seed", "num_inference_steps", "guidance_scale", "method", "weights_sha256", "mix", "label"),
    "flagged",
)
UNKNOWN_MODEL = "unknown model"


class UploadError(UserError, ValueError):
    """One image cannot be sent or was refused; the others may go."""


@dataclass(frozen=True)
class SyntheticImage:
    """A generated image with where it comes from.

    Attributes:
        path: of the file.
        model: what generated it, name and version.
        provenance: how, by column of the manifest.
        problem: why it must not be sent; "" if it may.
    """

    path: Path
    model: str
    provenance: dict[str, str]
    problem: str = ""


def synthetic_images(folder: str | Path, model: str) -> list[SyntheticImage]:
    """The images that a manifest lists, in its order.

    Args:
        folder: with manifest.csv, as generate.yaml or inference.yaml wrote it.
        model: what generated them.

    Raises:
        DatasetError: no manifest, or one that cannot be used.
    """
    root = Path(folder).expanduser().resolve()
    if not (root / MANIFEST_NAME).is_file():
        raise DatasetError(f"{folder}: found no {MANIFEST_NAME}; expected a folder that a generation has written")
    return [_image(root, row.item, model) for row in manifest_rows(root)]


def _image(root: Path, item: dict[str, str], model: str) -> SyntheticImage:
    path = Path(item["image"])
    problem = ""
    if item.get("synthetic", "").lower() != "true":
        problem = "the manifest does not call it synthetic; images of patients are not for this command"
    elif item.get("flagged", "").lower() == "yes":
        problem = "the privacy check took it for a copy of a patient's image"
    elif not path.resolve().is_relative_to(root):
        problem = "it lies outside of the folder"
    provenance = {name: item[name] for name in PROVENANCE_COLUMNS if item.get(name)}
    return SyntheticImage(path, model, provenance, problem)


def model_of(folder: str | Path, bundles: Path) -> str:
    """Name and version of the shipped bundle that generated a folder, by the weights' hash; else `UNKNOWN_MODEL`.

    Args:
        folder: with manifest.csv.
        bundles: folder of the bundles; the samples that each ships name its weights.
    """
    mine = _weights(Path(folder).expanduser() / MANIFEST_NAME)
    for metadata in sorted(bundles.glob("*/configs/metadata.json")):
        bundle = metadata.parents[1]
        if len(mine) == 1 and mine == _weights(bundle / "samples" / MANIFEST_NAME):
            return f"{bundle.name} {json.loads(metadata.read_text(encoding='utf-8'))['version']}"
    return UNKNOWN_MODEL


def _weights(manifest: Path) -> set[str]:
    if not manifest.is_file():
        return set()
    with manifest.open(newline="", encoding="utf-8") as file:
        return {record.get("weights_sha256") or "" for record in csv.DictReader(file)} - {""}


class Target(Protocol):
    """Where images go."""

    def send(self, image: SyntheticImage) -> tuple[str, bool]:
        """Send one; returns its name there and whether it was there already."""


class LabelDatastore:
    """The datastore of a running MONAI Label server.

    Args:
        service: at the server's address.
        client_name: the client_id that the server keeps with each image.

    Raises:
        ServiceError: what answers there is no MONAI Label server.
    """

    def __init__(self, service: HttpService, client_name: str) -> None:
        self.service = service
        self.client_name = client_name
        info = service.request("GET", "/info/").json()
        if not isinstance(info, dict) or "models" not in info:
            raise ServiceError(
                f"{service.url}: found a service that is no MONAI Label server; expected one. Check the address, "
                "or give an archive as --dicomweb."
            )

    def send(self, image: SyntheticImage) -> tuple[str, bool]:
        """Send one image unless the server has it.

        Raises:
            UploadError: it is unreadable, or refused.
        """
        read_radiograph(image.path)  # a bad file is not for the server to find out
        data = image.path.read_bytes()
        name = upload_name(image.path, data)
        query = f"/datastore/image?image={quote(name, safe='')}"
        if self.service.request("HEAD", query).status == 200:
            return name, True
        params = {
            **{"client_id": self.client_name, "source": SOURCE, "synthetic": True, "model": image.model},
            **image.provenance,
        }
        suffix = _suffix(image.path)
        media_type = mimetypes.guess_type(f"a{suffix}")[0] or "application/octet-stream"
        body, headers = multipart_form({"params": json.dumps(params)}, [("file", name + suffix, media_type, data)])
        reply = self.service.request("PUT", query, body, headers)
        answer = reply.json()
        if reply.status != 200 or not isinstance(answer, dict) or answer.get("image") != name:
            raise UploadError(f"the server did not take it, {reply.reason()}")
        return name, False


class DicomWebArchive:
    """A DICOMweb archive such as Orthanc's; images become DX files (see `dicom_dx`).

    Args:
        service: at the root of DICOMweb, such as http://127.0.0.1:8042/dicom-web.
        body_part: of the files, see `DxSettings`.
        modality: of the files, DX or IO.
    """

    def __init__(self, service: HttpService, body_part: str = "", modality: str = "DX") -> None:
        self.service = service
        self.body_part = body_part
        self.modality = modality

    def send(self, image: SyntheticImage) -> tuple[str, bool]:
        """Store one image unless the archive has it.

        Raises:
            UploadError: it is unreadable, or refused.
            DxError: it cannot become a DX file.
        """
        radiograph = read_radiograph(image.path)
        settings = DxSettings(modality=self.modality, body_part=self.body_part, model=image.model)
        dataset = dx_dataset(radiograph.pixels, settings, radiograph.spacing_mm, provenance=image.provenance)
        uid = str(dataset.SOPInstanceUID)
        if self._has(str(dataset.StudyInstanceUID), uid):
            return uid, True
        with tempfile.TemporaryDirectory() as folder:
            data = write_dx(dataset, Path(folder) / "image.dcm", radiograph.pixels).read_bytes()
        body, headers = multipart_related("application/dicom", [data])
        reply = self.service.request("POST", "/studies", body, {**headers, "Accept": "application/dicom+json"})
        answer = reply.json()
        # 202 says that some were not stored, 409 that none was; 00081198 is Failed SOP Sequence.
        failed = isinstance(answer, dict) and answer.get("00081198", {}).get("Value")
        if reply.status != 200 or failed:
            raise UploadError(f"the archive did not store it, {reply.reason()}")
        return uid, False

    def _has(self, study: str, instance: str) -> bool:
        query = f"/studies/{study}/instances?SOPInstanceUID={instance}"
        reply = self.service.request("GET", query, headers={"Accept": "application/dicom+json"})
        return reply.status == 200 and bool(reply.json())


def upload_name(path: Path, data: bytes) -> str:
    """`synthetic_<file's name>_<first 8 digits of the content's SHA-256>`, of letters, digits, - and _."""
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", path.name.removesuffix(_suffix(path)))[:64]
    return f"{NAME_PREFIX}{stem}_{hashlib.sha256(data).hexdigest()[:8]}"


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


@dataclass(frozen=True)
class Outcome:
    """What became of one image: its name at the target, or why it is not there."""

    image: SyntheticImage
    name: str = ""
    was_there: bool = False
    problem: str = ""


def send_all(images: Iterable[SyntheticImage], target: Target) -> Iterable[Outcome]:
    """Send images one by one; bad ones become outcomes and do not stop the others.

    Raises:
        ServiceError: the service went away, or asks for a log-in; what was sent before is there.
    """
    for image in images:
        if image.problem:
            yield Outcome(image, problem=image.problem)
            continue
        try:
            yield Outcome(image, *target.send(image))
        except ServiceError:
            raise
        except (UserError, OSError, ValueError) as error:
            yield Outcome(image, problem=str(error))


def problems(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each image that is not there."""
    return [f"{o.image.path.name}: {o.problem.removeprefix(f'{o.image.path}: ')}" for o in outcomes if o.problem]
