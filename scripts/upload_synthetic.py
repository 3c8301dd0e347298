"""Put generated radiographs, with where they come from, before the annotators of a MONAI Label server.

python scripts/upload_synthetic.py bundles/dental_radiograph_segmentation/samples --server http://127.0.0.1:8000
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common.command_line import run_command
from common.errors import SettingsError, UserError
from common.label.services import (
    TOKEN,
    UNKNOWN_MODEL,
    DicomWebArchive,
    LabelDatastore,
    ServiceError,
    model_of,
    synthetic_images,
)
from common.progress import ProgressBar

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


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
        raise SettingsError(f"--limit: found {limit!r}; expected a whole number of 1 or more")
    name = str(model) or model_of(folder, BUNDLES)
    images = synthetic_images(folder, name)[:limit]
    if name == UNKNOWN_MODEL:
        print("no shipped bundle has these weights: they are sent without the model's name; --model gives it")
    token = os.environ.get(TOKEN, "")
    target: DicomWebArchive | LabelDatastore
    if dicomweb:
        target = DicomWebArchive(dicomweb, token, str(body_part).upper(), str(modality))
    else:
        target = LabelDatastore(server, token, str(client_name))
    sent = there = failed = 0
    try:
        for image in ProgressBar(images, "sending", unit="image"):
            try:
                if image.problem:
                    raise UserError(image.problem)
                _, was_there = target.send(image)
                sent, there = sent + (not was_there), there + was_there
            except ServiceError:
                raise
            except (UserError, OSError, ValueError) as error:  # bad ones do not stop the others
                failed += 1
                ProgressBar.write(f"not sent: {image.path.name}: {str(error).removeprefix(f'{image.path}: ')}")
    finally:
        print(f"{target.url}: {sent} sent, {there} there already, {failed} not sent")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_command(upload_synthetic)
