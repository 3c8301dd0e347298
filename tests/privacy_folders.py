"""Phantoms as training, held-out and generated images, for the tests of the privacy check."""

import csv
import functools
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from common.data.phantom import draw_chest_phantom
from common.evaluation.privacy_report import PrivacyCheck
from common.intensity import stored_values
from common.pipelines.job_log import Entry, JobLog
from common.pipelines.manifest import ROW_COLUMNS, joined, write_generation_manifest

SIZE = 64
NUM_TRAIN, NUM_HELD_OUT = 45, 40
SETTINGS = {"strategy": "variation", "seed": 0}
OPTIONS = {"image_size": SIZE, "picture_size": 32, "max_shift": 2, "num_controls": 10, "batch_size": 16}


class Pooling(nn.Module):
    """An encoder with a weight that counts what it sees."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.images = 0

    def forward(self, image):
        self.images += len(image)
        pooled = F.adaptive_avg_pool2d(image, 6).flatten(1) * self.weight
        return SimpleNamespace(cls_token=pooled - pooled.mean(1, keepdim=True))


@functools.cache
def phantom(seed):
    return draw_chest_phantom(SIZE, SIZE, seed=seed)


@pytest.fixture(scope="session")
def copy_feature_cache(tmp_path_factory):
    """Features that all tests share, as several checks of one training set would."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def real_phantoms(tmp_path_factory):
    """Phantoms as training and held-out images, each of a patient of its own."""
    folder = tmp_path_factory.mktemp("real")
    for number in range(NUM_TRAIN + NUM_HELD_OUT):
        Image.fromarray(stored_values(phantom(number), 8)).save(folder / f"{number:03}.png")
    items = [{"image": str(folder / f"{n:03}.png"), "patient_id": f"P{n}"} for n in range(NUM_TRAIN + NUM_HELD_OUT)]
    return items[:NUM_TRAIN], items[NUM_TRAIN:]


def generate(folder, images, sources=None, split="train"):
    """A generated folder with these images [1, H, W]; sources by number: items."""
    (folder / "images").mkdir(parents=True)
    log = JobLog(folder, {**SETTINGS, "split": split}, keeps_folder=True)
    entries = []
    for number, image in enumerate(images):
        own = (sources or {}).get(number, ())
        columns = dict.fromkeys(ROW_COLUMNS, "") | {"image": f"images/{number:04}.png", "seed": number}
        columns |= {"sources": joined(item["image"] for item in own), "strategy": "variation" if own else "prior"}
        columns |= {"source_patient_ids": joined(item["patient_id"] for item in own)}
        Image.fromarray(stored_values(image, 8)).save(folder / columns["image"])
        entries.append(Entry(f"{number:04}", "", [], columns))
    log.append(entries)
    write_generation_manifest(folder, [entry.row for entry in entries], split)


def fresh(count, first=1000):
    return [phantom(first + number) for number in range(count)]


def copy_of(number):
    """A training image given back with noise."""
    image = phantom(number)
    return (image + 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


@pytest.fixture
def privacy_check(tmp_path, copy_feature_cache):
    return functools.partial(make_check, tmp_path, cache_dir=copy_feature_cache)


def make_check(tmp_path, real, encoder=None, **options):
    train, held_out = real
    return PrivacyCheck(
        tmp_path / "generated",
        train,
        held_out,
        encoder or Pooling(),
        "cpu",
        tmp_path / "report",
        **{**OPTIONS, **options},
    )


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
