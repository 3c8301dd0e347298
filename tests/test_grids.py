from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_tiny_codec, make_tiny_denoiser, make_tiny_store
from ignite.engine import Engine, Events
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_image_samplers import make_pixel_sampler
from torch.utils.tensorboard import SummaryWriter

from common.data.latent_store import LatentDataset
from common.diffusion.image_sampler import ImageSampler
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.samplers import Sampler
from common.io.contact_sheet import contact_sheet_array
from common.networks.conditioning import TokenSelection
from common.seeding import Purpose, derive_seed
from common.training.grids import SAMPLE_TITLES, ReconstructionGrid, SampleGrid, UnconditionalSampleGrid

SELECTION = TokenSelection(use_registers=True, patch_grid=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return LatentDataset(make_tiny_store(tmp_path_factory.mktemp("store"), num_val=5), "val")


@pytest.fixture(scope="module")
def sampler():
    codec = make_tiny_codec()
    codec.set_statistics(torch.zeros(2), torch.ones(2), 1)
    method = Sampler(NoiseSchedule("rectified_flow", "flow"), "euler", 2)
    return ImageSampler(make_tiny_denoiser(), codec, method, 32, False, torch.device("cpu"))


def make_grid(sampler, dataset, folder, num_sources=2):
    return SampleGrid(sampler, SELECTION, dataset, str(folder / "samples"), num_sources, seed=3)


def draw(grid, epoch):
    grid(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))


def test_each_row_is_a_source_and_its_own_samples(sampler, dataset, tmp_path):
    draw(make_grid(sampler, dataset, tmp_path), epoch=12)
    rows = []
    for row, index in enumerate([0, 2]):  # spread over the five
        source = {name: value[None] for name, value in dataset[index].items() if torch.is_tensor(value)}
        seeds = [derive_seed(3, Purpose.SAMPLING, row * 3 + column) for column in range(3)]
        tokens = SELECTION.select(source)
        samples = [sampler.sample(tokens, [seed])[0] for seed in seeds]
        rows.append([sampler.codec.decode(source["latents_mean"])[0].detach(), *samples])
    expected = contact_sheet_array(rows, SAMPLE_TITLES, ["7.png", "9.png"]).astype(int)  # the third is of the training
    drawn = np.asarray(Image.open(tmp_path / "samples" / "samples_epoch_012.png")).astype(int)
    assert drawn.shape == expected.shape
    assert np.abs(drawn - expected).max() <= 1  # other batches


def test_the_grid_goes_to_tensorboard_too(sampler, dataset, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        engine = SimpleNamespace(state=SimpleNamespace(epoch=4), tensorboard=writer)
        make_grid(sampler, dataset, tmp_path)(engine)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("val/samples")] == [4]


def test_every_validation_draws_the_same_samples_of_unchanged_weights(sampler, dataset, tmp_path):
    grid = make_grid(sampler, dataset, tmp_path)
    for epoch in (1, 2):
        torch.manual_seed(epoch)  # the global generator must not matter
        draw(grid, epoch)
    first, second = sorted((tmp_path / "samples").iterdir())
    assert first.read_bytes() == second.read_bytes()


def test_fewer_held_out_images_than_rows_are_all_drawn(sampler, dataset, tmp_path):
    assert len(make_grid(sampler, dataset, tmp_path, num_sources=20).sources["index"]) == 5


@pytest.mark.parametrize(("rank", "drawn"), [(0, ["samples_epoch_001.png"]), (1, [])])
def test_only_the_first_process_draws_at_the_end_of_a_validation(sampler, dataset, tmp_path, monkeypatch, rank, drawn):
    monkeypatch.setenv("RANK", str(rank))
    evaluator = Engine(lambda engine, batch: None)
    make_grid(sampler, dataset, tmp_path).attach(evaluator)
    seen = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.extend((tmp_path / "samples").glob("*")))
    evaluator.run([0, 1])
    assert seen == []
    assert sorted(path.name for path in (tmp_path / "samples").glob("*")) == drawn


# ---- without sources -----------------------------------------------------------------------------------------------


def make_unconditional(folder, num_images):
    return UnconditionalSampleGrid(make_pixel_sampler(), str(folder / "samples"), num_images, seed=3)


def test_unconditional_samples_stand_in_rows_of_four(tmp_path):
    draw(make_unconditional(tmp_path, 6), epoch=7)
    samples = list(make_pixel_sampler().sample([derive_seed(3, Purpose.SAMPLING, number) for number in range(6)]))
    drawn = np.asarray(Image.open(tmp_path / "samples" / "samples_epoch_007.png"))
    assert np.array_equal(drawn, contact_sheet_array([samples[:4], samples[4:]]))


@pytest.mark.parametrize(("num_images", "drawn"), [(2, ["samples_epoch_001.png"]), (0, [])])
def test_no_images_draw_no_grid(tmp_path, num_images, drawn):
    evaluator = Engine(lambda engine, batch: None)
    make_unconditional(tmp_path, num_images).attach(evaluator)
    evaluator.run([0])
    assert sorted(path.name for path in (tmp_path / "samples").glob("*")) == drawn


# ---- reconstructions -----------------------------------------------------------------------------------------------


def test_reconstructions_of_the_first_batch_are_drawn(tmp_path):
    images = torch.rand(2, 3, 1, 16, 16)
    engine = Engine(lambda engine, batch: {"image": images[batch["n"]], "pred": 1 - images[batch["n"]]})
    ReconstructionGrid(str(tmp_path), num_images=2).attach(engine)
    drawn = []
    for name in ("first", "other"):
        engine.run([{"n": n, "image_path": [f"/deep/{name}_{i}.png" for i in range(3)]} for n in (0, 1)], max_epochs=1)
        drawn.append(np.asarray(Image.open(tmp_path / "reconstructions_epoch_001.png")))
    assert (drawn[0] != drawn[1]).any()  # each row is under the name of its image
    drawn = drawn[0]
    first, last = (contact_sheet_array([[each]])[4:20, 4:20] for each in (images[0, 1], images[1, 1]))
    assert any((drawn[top : top + 16, 4:20] == first).all() for top in range(drawn.shape[0] - 15))
    assert not any((drawn[top : top + 16, 4:20] == last).all() for top in range(drawn.shape[0] - 15))
