"""A tiny bundle, folders of phantoms, and MONAI Label's server on them: what the tests of this folder share."""

from __future__ import annotations

import io
import json
import shutil
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from dental_data import TINY, mask_of, write_labelled_folder
from PIL import Image

from common.io.segmentation_classes import GROUPED
from common.networks.diffusion_segmenter import DiffusionSegmenter
from common.networks.weights import save_weights

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE = REPOSITORY / "bundles" / "dental_radiograph_segmentation"
APP = REPOSITORY / "scripts" / "monailabel_app"
SIZE = (45, 61)  # rows, columns of the phantoms
PATTERNS = ["*.png", "*.jpg", "*.jpeg", "*.tif", "*.dcm", "*.nii.gz", "*.nii", "*.nrrd"]
MODEL = "tiny_segmentation"


def make_tiny_bundle(folder: Path) -> Path:
    """The dental bundle's own configs with a smaller network, and random weights for it."""
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    shutil.copy(BUNDLE / "configs" / "metadata.json", folder / "configs")
    shutil.copy(BUNDLE / "configs" / "inference.yaml", folder / "configs")
    config = yaml.safe_load((BUNDLE / "configs" / "train.yaml").read_text())
    config["network_def"] |= TINY
    config["image_size"] = [48, 64]
    (folder / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    torch.manual_seed(0)
    settings = {key: value for key, value in config["network_def"].items() if not key.startswith("_")}
    settings |= {"num_classes": 6, "dropout": 0.1, "use_flash_attention": False, "timestep": 1}
    network = DiffusionSegmenter(**settings)
    for parameter in network.parameters():
        if not parameter.any():  # the last convolution of each block, without which dropout would change nothing
            torch.nn.init.normal_(parameter, std=0.1)
    save_weights(network, folder / "models" / "model.pt", {"class_table": "grouped", "image_size": [48, 64]})
    return folder


def write_studies(folder: Path, count: int) -> Path:
    """Phantoms tooth_0.png and so on; what their masks should be is in `<folder>_truth`, as label values."""
    drawn = folder.with_name(f"{folder.name}_drawn")
    truth = truth_folder(folder)
    folder.mkdir(parents=True)
    truth.mkdir()
    for image in write_labelled_folder(drawn, count, SIZE):
        shutil.copy(image, folder)
        labels = GROUPED.map_mask(mask_of(image), "periapical").astype(np.uint8)
        Image.fromarray(labels).save(truth / image.name)
    return folder


def truth_folder(studies: Path) -> Path:
    """Where the true masks of `write_studies` lie."""
    return studies.with_name(f"{studies.name}_truth")


def app_client(studies: Path | str, sessions: Path | None = None, **conf: Any):
    """FastAPI's test client of a fresh app; sessions are kept beside a folder of studies unless told otherwise."""
    from fastapi.testclient import TestClient
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import clear_cache

    from common.label.server_guard import guard_server

    settings.MONAI_LABEL_APP_DIR = str(APP)
    settings.MONAI_LABEL_STUDIES = str(studies)
    settings.MONAI_LABEL_APP_CONF = {key: str(value) for key, value in conf.items()}
    settings.MONAI_LABEL_AUTO_UPDATE_SCORING = False
    settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False
    settings.MONAI_LABEL_DATASTORE_FILE_EXT = PATTERNS
    settings.MONAI_LABEL_SESSION_PATH = str(sessions or f"{studies}_sessions")
    clear_cache()
    from monailabel.app import app

    guard_server()  # as the server's start does
    return TestClient(app, raise_server_exceptions=False)


def infer(client, image: str, expect: int = 200, model: str = MODEL, file: Path | None = None, **params: Any):
    """The mask's bytes and the parameters that come with it, or the message of a refusal."""
    files = {"file": (file.name, file.read_bytes())} if file else None
    answer = client.post(
        f"/infer/{model}", params={"image": image, "output": "all"}, data={"params": json.dumps(params)}, files=files
    )
    assert answer.status_code == expect, answer.text
    if expect != 200:
        return answer.json()["detail"]
    header = f"content-type: {answer.headers['content-type']}\r\n\r\n".encode()
    answers = BytesParser().parsebytes(header + answer.content).get_payload()
    parts = {part.get_param("name", header="content-disposition"): part for part in answers}
    return parts["image"].get_payload(decode=True), json.loads(parts["params"].get_payload(decode=True))


def png_labels(content: bytes) -> np.ndarray:
    """Labels of a mask as PNG, which has to be grey of 8 bits."""
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode) == ("PNG", "L")
    return np.asarray(image)


def save_label(client, image: str, path: Path, expect: int = 200, tag: str = "final", **params: Any):
    return put(client, "label", "label", path, expect, params, image=image, tag=tag)


def upload(client, image: str, path: Path, expect: int = 200):
    return put(client, "image", "file", path, expect, {}, image=image)


def put(client, what: str, field: str, path: Path, expect: int, params: dict[str, Any], **query: str):
    """What the server answers, or the message of a refusal."""
    files = {field: (path.name, path.read_bytes())}
    answer = client.put(f"/datastore/{what}", params=query, data={"params": json.dumps(params)}, files=files)
    assert answer.status_code == expect, answer.text
    return answer.json() if expect == 200 else answer.json()["detail"]


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice over the classes of the truth."""
    labels = [label for label in np.unique(truth).tolist() if label]
    both = [2 * ((found == n) & (truth == n)).sum() / ((found == n).sum() + (truth == n).sum()) for n in labels]
    return float(np.mean(both))
