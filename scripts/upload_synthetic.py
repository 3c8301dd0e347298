"""Put generated radiographs, with where they come from, before the annotators of a MONAI Label server.

python scripts/upload_synthetic.py bundles/dental_radiograph_segmentation/samples --server http://127.0.0.1:8000
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm import tqdm

from common.command_line import run_command
from common.label.http_service import HttpService, LogInError, ServiceError
from common.label.label_upload import (
    UNKNOWN_MODEL,
    DicomWebArchive,
    LabelDatastore,
    Outcome,
    Target,
    UploadError,
    model_of,
    problems,
    send_all,
    synthetic_images,
)

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
TOKEN = "MONAI_LABEL_TOKEN"


def upload_synthetic(
    folder: str,
    *,
    server: str = "http://127.0.0.1:8000",
    limit: int | None = None,
    client_name: str = "upload_synthetic",
    model: str = "",
    dicomweb: str = "",
    body_part: str = "",
    modality: str = "DX",
) -> None:
    """Send the images that a folder's manifest.csv calls synthetic; those that are there already are skipped.

    They are named synthetic_…, and the server keeps model, weights, seed, strategy and the like with each. A server
    with authentication wants a token, in the environment as MONAI_LABEL_TOKEN.

    Args:
        folder: with manifest.csv and images, as generate.yaml or inference.yaml wrote it.
        server: address of MONAI Label.
        limit: send the first so many of the images only.
        client_name: kept by the server as who sent them.
        model: what generated them; by default the shipped bundle whose weights the manifest names.
        dicomweb: store them as DICOM DX in this archive instead, such as http://127.0.0.1:8042/dicom-web.
        body_part: Body Part Examined of the DICOM files, such as JAW.
        modality: of the DICOM files, DX or IO.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UploadError(f"--limit: found {limit!r}; expected a whole number of 1 or more")
    name = str(model) or model_of(folder, BUNDLES)
    images = synthetic_images(folder, name)[:limit]
    if name == UNKNOWN_MODEL:
        print("no shipped bundle has these weights: they are sent without the model's name; --model gives it")
    service = HttpService(dicomweb or server, os.environ.get(TOKEN, ""))
    outcomes: list[Outcome] = []
    try:
        target: Target = (
            DicomWebArchive(service, str(body_part).upper(), str(modality))
            if dicomweb
            else LabelDatastore(service, str(client_name))
        )
        for outcome in tqdm(send_all(images, target), "sending", total=len(images), unit="image", dynamic_ncols=True):
            outcomes.append(outcome)
    except LogInError as error:
        raise LogInError(f"{error} Put a valid token into the environment as {TOKEN}.") from error
    except ServiceError as error:  # in the middle, too
        so_far = f" {sent(outcomes)} so far; the same command goes on from there." if outcomes else ""
        raise ServiceError(f"{error}{so_far}") from error
    report(outcomes, service.url)


def sent(outcomes: list[Outcome]) -> str:
    """How many were sent, and how many not."""
    failed = len(problems(outcomes))
    there = sum(outcome.was_there for outcome in outcomes)
    return f"{len(outcomes) - there - failed} sent, {there} there already, {failed} not sent"


def report(outcomes: list[Outcome], url: str) -> None:
    """Print what failed, then the count; end with 1 if something failed."""
    failed = problems(outcomes)
    for line in failed:
        print(f"not sent: {line}")
    print(f"{url}: {sent(outcomes)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_command(upload_synthetic)
