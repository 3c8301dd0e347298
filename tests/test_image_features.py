"""Every image is encoded once: the cache of features, and what is and is not in its key."""

from __future__ import annotations

import logging
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import draw_radiographs
from PIL import Image
from torch import nn

from common.data.transforms import load_square
from common.errors import DatasetError, SettingsError, WeightsError
from common.evaluation.image_features import FeatureExtractor, ImageFeatures, build_extractor
from common.io import read_radiograph
from common.networks.dino import DinoEncoder


class Tiny(nn.Module):
    """A real network that counts the images it sees, and may be killed after some of them."""

    def __init__(self, seed=0, killed_after=None):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, 5, 3)
        self.count, self.killed_after = 0, killed_after

    def forward(self, image):
        if self.killed_after is not None and self.count >= self.killed_after:
            raise KeyboardInterrupt
        self.count += len(image)
        return self.conv(image).square().mean(dim=(2, 3))


def encoder(tmp_path, network, **options):
    options = {"image_size": 32, "batch_size": 3, "progress": False, **options}
    return ImageFeatures(FeatureExtractor("tiny", network, options.pop("settings", "")), tmp_path / "cache", **options)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "images"
    draw_radiographs(folder, count=8, size=40)
    return folder


@pytest.fixture
def paths(drawn, tmp_path):
    return sorted(shutil.copytree(drawn, tmp_path / "images").iterdir())


def expected(network, paths):
    """One image after the other, without cache."""
    with torch.no_grad():
        rows = [network(load_square(path, 32)[None])[0] for path in paths]
    return torch.stack(rows).numpy()


def test_features_are_those_of_each_file_in_order_and_made_once(tmp_path, paths):
    copy, network = shutil.copy(paths[0], tmp_path / "images" / "copy.png"), Tiny()
    found = encoder(tmp_path, network).of_files([*paths, copy, paths[0]])
    assert found.features.shape == (10, 5) and found.features.dtype == np.float32 and network.count == 8
    assert found.indices == list(range(10)) and found.problems == []
    np.testing.assert_allclose(found.features[:8], expected(Tiny(), paths), rtol=1e-5)
    assert len(np.unique(found.features[:, 0])) == 8
    network = Tiny()
    again = encoder(tmp_path, network).of_files(paths[::-1])
    assert network.count == 0
    np.testing.assert_array_equal(again.features, found.features[:8][::-1])


def test_only_a_changed_file_is_encoded_again(tmp_path, paths):
    first = encoder(tmp_path, Tiny()).of_files(paths).features
    pixels = np.asarray(Image.open(paths[2])).copy()
    pixels[:20] = pixels[:20] // 2
    Image.fromarray(pixels).save(paths[2])
    network = Tiny()
    again = encoder(tmp_path, network).of_files(paths).features
    assert network.count == 1
    assert (again[2] != first[2]).any()
    np.testing.assert_array_equal(np.delete(again, 2, 0), np.delete(first, 2, 0))


@pytest.mark.parametrize(
    ("change", "options"),
    [({"seed": 1}, {}), ({}, {"settings": "another crop"}), ({}, {"image_size": 24})],
    ids=["weights", "settings", "image_size"],
)
def test_what_the_features_depend_on_is_in_the_key(tmp_path, paths, change, options):
    encoder(tmp_path, Tiny()).of_files(paths)
    network = Tiny(**change)
    encoder(tmp_path, network, **options).of_files(paths)
    assert network.count == 8


def test_a_killed_run_goes_on_where_it_was(tmp_path, paths):
    with pytest.raises(KeyboardInterrupt):
        encoder(tmp_path, Tiny(killed_after=6)).of_files(paths)
    network = Tiny()
    found = encoder(tmp_path, network).of_files(paths)
    assert network.count == 2
    np.testing.assert_allclose(found.features, expected(Tiny(), paths), rtol=1e-5)


def test_a_damaged_entry_is_encoded_again(tmp_path, paths):
    first = encoder(tmp_path, Tiny()).of_files(paths).features
    entries = sorted((tmp_path / "cache").rglob("*.npy"))
    assert len(entries) == 8
    entries[0].write_bytes(entries[0].read_bytes()[:-3])
    entries[1].write_bytes(b"")
    network = Tiny()
    again = encoder(tmp_path, network).of_files(paths).features
    assert network.count == 2
    np.testing.assert_allclose(again, first, rtol=1e-5)


def test_unreadable_files_are_reported_and_the_others_done(tmp_path, paths, caplog):
    paths[1].write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, logger="common.evaluation.image_features"):
        found = encoder(tmp_path, Tiny()).of_files([*paths, tmp_path / "gone.png"])
    assert found.indices == [0, 2, 3, 4, 5, 6, 7]
    assert [path for path, _ in found.problems] == [str(paths[1]), str(tmp_path / "gone.png")]
    np.testing.assert_allclose(found.features, expected(Tiny(), [paths[i] for i in found.indices]), rtol=1e-5)
    assert caplog.text.count("skipped: ") == 2 and str(paths[1]) in caplog.text
    with pytest.raises(DatasetError):
        encoder(tmp_path, Tiny()).of_files([paths[1]])


def test_tensors_are_treated_like_files(tmp_path, paths):
    images = torch.stack([read_radiograph(path).pixels for path in paths])
    found = encoder(tmp_path, Tiny()).of_batches([images[:5], images[5:]])
    np.testing.assert_allclose(found, expected(Tiny(), paths), rtol=1e-5)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "batch",
    [torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32) * 2 - 1, torch.full((2, 1, 32, 32), torch.nan)],
    ids=["shape", "range", "NaN"],
)
def test_tensors_of_other_shape_or_range_are_refused(tmp_path, batch):
    with pytest.raises(DatasetError):
        encoder(tmp_path, Tiny()).of_batches([batch])


def test_features_that_are_not_finite_are_refused_and_not_kept(tmp_path, paths):
    network = Tiny()
    network.conv.weight.data.fill_(torch.nan)
    with pytest.raises(WeightsError):
        encoder(tmp_path, network).of_files(paths)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_dino_extractor_gives_the_cls_token(tiny_dino):
    image = torch.rand(2, 1, 64, 64)
    extractor = build_extractor("dino", dino_source=tiny_dino)
    found = ImageFeatures(extractor, image_size=64, progress=False).of_batches([image])
    np.testing.assert_allclose(found, DinoEncoder(tiny_dino)(image).cls_token.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "sources", "error"),
    [
        ("resnet", {}, SettingsError),
        ("inception", {}, WeightsError),
        ("dino", {}, WeightsError),
        ("dino", {"dino_source": "/nowhere/none"}, WeightsError),
        ("xrv", {}, SettingsError),
    ],
)
def test_an_extractor_that_cannot_be_built_is_refused(name, sources, error, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchxrayvision", None)
    with pytest.raises(error):
        build_extractor(name, **sources)
