import logging

import pytest
import torch

from common.data.datalists import radiograph_items
from common.data.phantom import draw_chest_phantom
from common.data.typical_images import FILE_NAME, TypicalImages, features, load_typical
from common.io import read_radiograph
from common.networks.weights import save_weights
from common.pipelines.folder_job import warn_of_unlike


@pytest.fixture(scope="module")
def typical():
    phantoms = [features(draw_chest_phantom(60, 70, seed=seed)) for seed in range(40)]
    return TypicalImages().fit(phantoms[:30], phantoms[30:])


def test_others_are_above_one_and_held_out_ones_are_not(typical):
    own = [typical(draw_chest_phantom(60, 70, seed=seed)) for seed in range(30, 40)]
    assert sum(value > 1 for value in own) <= 2  # the limits are quantiles of these ten
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 60, 70, generator=generator)
    stripes = torch.arange(70).remainder(6).div(5).expand(1, 60, 70)
    assert min(typical(noise), typical(stripes)) > 1


def test_it_lies_beside_the_weights_or_there_is_none(typical, tmp_path):
    assert load_typical(tmp_path / "model.pt") is None
    save_weights(typical, tmp_path / FILE_NAME)
    image = draw_chest_phantom(64, 64, seed=5)
    assert load_typical(tmp_path / "model.pt")(image) == typical(image)


def test_the_warning_names_those_above_one_only(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_unlike({"a": 0.7, "b": "", "c": None})
        assert not caplog.records
        warn_of_unlike({"a": 0.7, "chest.png": 1.2})
    assert "chest.png" in caplog.text and "1 of 2" in caplog.text


@pytest.mark.shared
@pytest.mark.parametrize(
    ("bundle", "own", "other", "where"),
    [
        ("dental_radiograph_segmentation", "dental", "cxr", {"set": "periapical"}),
        ("cxr_autoencoder", "cxr", "dental", None),
        ("cxr_dino_latent_diffusion", "cxr", "dental", None),
    ],
)
def test_a_film_of_the_other_kind_is_told_by_the_shipped_limits(repository, shared_data, bundle, own, other, where):
    typical = load_typical(repository / "bundles" / bundle / "models" / "model.pt")

    def share(name, chosen=None):
        items = radiograph_items(shared_data / name, "val", 0.1, 0, where=chosen)[::6]
        return sum(typical(read_radiograph(item["image"]).pixels) > 1 for item in items) / len(items)

    assert share(own, where) < 0.08 and share(other) > 0.85
