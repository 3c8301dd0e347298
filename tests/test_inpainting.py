"""Holes: where they are, how they are filled, and that nothing else of a radiograph changes."""

import numpy as np
import pytest
import torch
from conftest import draw_radiographs
from PIL import Image
from tiny_bundles import generator_models

from common.data.dataset import RadiographDataset
from common.data.transforms import LoadSquared
from common.errors import SettingsError
from common.io import read_radiograph
from common.pipelines import DinoDiffusion
from common.pipelines.diffusion import choose_strategy
from common.pipelines.folder_generation import FolderGeneration
from common.pipelines.inpainting import membrane, open_hole

CHOICES = {
    **{
        "cache_dir": None,
        "seed": 0,
        "num_samples": 1,
        "num_per_source": 2,
        "label": None,
        "interpolation_mode": "slerp",
    },
    **{"interpolation_mode": "slerp", "mix_range": (0.0, 1.0), "num_neighbours": 1, "noise_scale": 0.5},
}


def mask_of_size(height, width, rows, columns):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, tiny_dino):
    bundle = generator_models(tmp_path_factory.mktemp("bundle"), tiny_dino)
    return DinoDiffusion.from_bundle(bundle, "cpu", num_inference_steps=3, amp=False)


@pytest.fixture(scope="module")
def tall():
    return torch.rand(1, 60, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("field", [lambda x, y: x * y, lambda x, y: x**2 - y**2, lambda x, y: 3 * x - y])
def test_a_membrane_solves_laplaces_equation(field):
    rows, columns = np.mgrid[0:24, 0:20] / 24.0
    truth = field(rows, columns)
    hole = mask_of_size(24, 20, slice(5, 17), slice(3, 12)).astype(bool)
    hole[18, 15] = True
    found = membrane(np.where(hole, 99.0, truth), hole)
    np.testing.assert_allclose(found, truth, atol=1e-4)


def test_a_membrane_is_level_at_the_border_of_the_image():
    hole = mask_of_size(9, 9, slice(0, 9), slice(0, 5)).astype(bool)
    values = np.where(hole, 7.0, 0.25)
    np.testing.assert_allclose(membrane(values, hole), 0.25, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "top"), [(slice(20, 30), 10), (slice(0, 5), 0), (slice(52, 60), 20), (slice(3, 43), 3)]
)
def test_the_square_holds_the_hole_and_is_central_where_it_can_be(tall, rows, top):
    hole = open_hole(tall, mask_of_size(60, 40, rows, slice(4, 9)))
    assert (hole.top, hole.left, hole.side) == (top, 0, 40)
    image, drawn = hole.filled_square(40)
    assert np.array_equal(drawn[0, 0].numpy(), hole.mask[top : top + 40])
    assert torch.equal(image[~drawn], tall[None, :, top : top + 40][~drawn])


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((60, 40)),
        np.ones((60, 40)),
        mask_of_size(40, 60, slice(0, 4), slice(0, 4)),
        mask_of_size(60, 40, slice(0, 41), slice(0, 4)),
    ],
    ids=["nothing", "everything", "turned", "longer than a square"],
)
def test_a_mask_that_does_not_fit_is_refused(tall, mask):
    with pytest.raises(SettingsError):
        open_hole(tall, mask)


def test_a_perfect_drawing_gives_the_radiograph_whatever_its_grey(tall):
    hole = open_hole(tall, mask_of_size(60, 40, slice(20, 35), slice(10, 30)))
    for shift in (0.0, 0.2):
        torch.testing.assert_close(hole.paste(tall[:, 10:50] + shift), tall, atol=1e-3, rtol=0)


def test_only_the_hole_is_drawn_at_the_radiographs_own_size(pipe, tall):
    mask = mask_of_size(60, 40, slice(20, 35), slice(10, 30))
    drawn = pipe.inpaint(tall, mask, 2, seed=3)
    assert drawn.shape == (2, 1, 60, 40) and drawn.min() >= 0 and drawn.max() <= 1
    inside = torch.from_numpy(mask).bool()
    for image in drawn:
        assert torch.equal(image[0][~inside], tall[0][~inside])
    assert (drawn[0] - drawn[1])[0][inside].abs().mean() > 1e-3
    assert torch.equal(drawn, pipe.inpaint(tall, torch.from_numpy(mask), 2, seed=3))


def test_a_folder_takes_one_mask_or_one_of_each_name(pipe, tmp_path):
    draw_radiographs(tmp_path / "in", 2, 40)
    paths = sorted((tmp_path / "in").iterdir())
    transform = LoadSquared(["image"], 32)
    dataset = RadiographDataset([{"image": str(path), "patient_id": path.stem} for path in paths], transform)
    (tmp_path / "masks").mkdir()
    mask = mask_of_size(40, 40, slice(8, 20), slice(8, 20))
    for path in paths:
        Image.fromarray(mask).save(tmp_path / "masks" / f"{path.stem}.png")
    ways = {"folder": tmp_path / "masks", "file": tmp_path / "masks" / f"{paths[0].stem}.png"}
    found = {}
    for way, masks in ways.items():
        places = {"dataset_dir": str(tmp_path / "in"), "masks": str(masks)}
        strategy = choose_strategy(pipe, "inpainting", dataset, **CHOICES, **places)
        requests = strategy.requests()
        assert [request.sources for request in requests] == [(0,), (0,), (1,), (1,)]
        found[way] = strategy.images(pipe.image_sampler, requests[1:3])
    assert all(torch.equal(*pair) for pair in zip(found["folder"], found["file"], strict=True))
    with pytest.raises(SettingsError):  # a patient's radiograph that says it is synthetic
        FolderGeneration(strategy, pipe.image_sampler, str(tmp_path / "out"), 1, dicom=True)
    keep = torch.from_numpy(mask) == 0
    assert torch.equal(found["file"][1][0][keep], read_radiograph(paths[1]).pixels[0][keep])
    (tmp_path / "masks" / f"{paths[1].stem}.png").unlink()
    for masks in (None, str(tmp_path / "masks")):
        with pytest.raises(SettingsError):
            choose_strategy(pipe, "inpainting", dataset, **CHOICES, dataset_dir=str(tmp_path / "in"), masks=masks)
