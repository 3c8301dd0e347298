"""The rivals of DDPM pre-training: what is hidden, what it costs, and that the same U-Net learns it."""

from types import SimpleNamespace

import pytest
import torch
from test_diffusion_segmenter import make_tiny_segmenter
from test_pixel_denoiser import TINY, make_tiny_pixel_denoiser
from torch import nn

from common.data.phantom import draw_chest_phantom
from common.errors import NonFiniteLossError
from common.networks.diffusion_segmenter import take_pretrained
from common.networks.pixel_denoiser import PixelDenoiser
from common.training.ema import ExponentialMovingAverage
from common.training.pretext_steps import GaussianNoise, MaskedPatches, PretextStep, PretextValidation

CPU = torch.device("cpu")
PRETEXTS = [GaussianNoise(0.5), MaskedPatches(patch_size=4, mask_ratio=0.5)]
both = pytest.mark.parametrize("pretext", PRETEXTS, ids=["denoising autoencoder", "masked images"])


class Known(nn.Module):
    """Restores every image as `image`, and keeps what it was given."""

    def __init__(self, image):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.image = image
        self.given = []

    def forward(self, corrupted, timesteps):
        self.given.append(SimpleNamespace(corrupted=corrupted, timesteps=timesteps))
        return self.image.expand_as(corrupted) + 0.0 * self.weight


def make_engine(network, lr=0.0, iteration=1):
    optimizer = torch.optim.Adam(network.parameters(), lr)
    return SimpleNamespace(state=SimpleNamespace(device=CPU, iteration=iteration), network=network, optimizer=optimizer)


def make_step(pretext, network, augmentation=None):
    ema = ExponentialMovingAverage(network, 0.9)
    return PretextStep(pretext=pretext, timestep=1, ema=ema, augmentation=augmentation)


def batch_of(image, draws=None):
    return {"image": image, "draw": torch.arange(len(image)) if draws is None else torch.as_tensor(draws)}


def phantoms(count, size=16):
    return torch.stack([draw_chest_phantom(size, size, seed=seed) for seed in range(count)])


# ---- corruption ----------------------------------------------------------------------------------------------------


def test_noise_has_the_strength_that_was_said_and_every_pixel_counts():
    image = phantoms(8, 32)
    corrupted, counts = GaussianNoise(0.5).corrupt(image, 0, list(range(8)))
    assert (corrupted - image).std() == pytest.approx(0.5, rel=0.03)
    assert counts.shape == image.shape and (counts == 1).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 23)])
def test_whole_patches_are_hidden_as_many_as_said_and_only_they_count(height, width):
    image = 0.5 + torch.rand(3, 1, height, width)
    corrupted, counts = MaskedPatches(4, 0.25).corrupt(image, 0, [0, 1, 2])
    assert torch.equal(corrupted == 0, counts == 1) and torch.equal(corrupted[counts == 0], image[counts == 0])
    corners = counts[:, 0, ::4, ::4]
    whole = corners.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width]
    assert torch.equal(counts[:, 0], whole)
    assert (corners.flatten(1).sum(1) == round(0.25 * corners[0].numel())).all()
    assert not torch.equal(counts[0], counts[1])


@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_something_is_always_hidden_and_something_always_seen(ratio):
    _, counts = MaskedPatches(4, ratio).corrupt(torch.rand(1, 1, 8, 8), 0, [0])
    assert 0 < counts.mean() < 1


@both
def test_an_image_is_corrupted_alike_whatever_batch_it_is_in(pretext):
    image, draws = phantoms(3), [4, 9, 10**6]
    together = pretext.corrupt(image, 0, draws)[0]
    for number, draw in enumerate(draws):
        assert torch.equal(pretext.corrupt(image[number : number + 1], 0, [draw])[0][0], together[number])
    assert not torch.equal(pretext.corrupt(image, 1, draws)[0], together)


def test_impossible_knobs_are_refused():
    with pytest.raises(ValueError, match="noise_std: expected a positive number"):
        GaussianNoise(0.0)
    for patch_size, ratio in [(0, 0.5), (4, 0.0), (4, 1.0)]:
        with pytest.raises(ValueError, match="patch_size of at least 1 and a mask_ratio in"):
            MaskedPatches(patch_size, ratio)
    with pytest.raises(ValueError, match="expected images larger than one patch of 16 px, found 16 × 12"):
        MaskedPatches(16, 0.5).corrupt(torch.rand(1, 1, 16, 12), 0, [0])


# ---- the steps -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_square_everywhere_or_the_magnitude_where_hidden():
    image = torch.full((2, 1, 16, 16), 0.5)  # 0 in [-1, 1]
    wrong = torch.full((1, 16, 16), 0.3)
    network = Known(wrong)
    assert make_step(PRETEXTS[0], network)(make_engine(network), batch_of(image))["loss"] == pytest.approx(0.09)
    assert make_step(PRETEXTS[1], network)(make_engine(network), batch_of(image))["loss"] == pytest.approx(0.3)
    assert [given.timesteps.tolist() for given in network.given] == [[1, 1], [1, 1]]
    hidden = MaskedPatches(4, 0.5).corrupt(image[:1], 0, [0])[1]
    right_where_hidden = Known(1.0 - hidden)
    step = make_step(PRETEXTS[1], right_where_hidden)
    assert step(make_engine(right_where_hidden), batch_of(image[:1]))["loss"] == 0.0


@both
def test_images_are_augmented_before_they_are_corrupted(pretext):
    image = phantoms(1)
    network = Known(2 * (image / 2) - 1)
    augmented = make_step(pretext, network, lambda image, mask, seeds: (image / 2, mask))
    assert augmented(make_engine(network), batch_of(image))["loss"] < 1e-6
    assert make_step(pretext, network)(make_engine(network), batch_of(image))["loss"] > 1e-3


@both
def test_one_batch_is_learnt_by_heart_and_the_segmenter_takes_the_weights(pretext, tmp_path):
    denoiser = PixelDenoiser(**{**TINY, "channels": [16, 32]})
    step, engine, batch = make_step(pretext, denoiser), make_engine(denoiser, lr=1e-2), batch_of(phantoms(2))
    losses = [step(engine, batch)["loss"] for _ in range(40)]
    assert losses[-1] < losses[0] / 2
    assert step.ema.num_updates == 40
    torch.save(step.ema.network.state_dict(), tmp_path / "model.pt")
    assert len(take_pretrained(make_tiny_segmenter(channels=[16, 32]), tmp_path / "model.pt")) == 2


@both
def test_every_weight_gets_a_gradient_and_dropout_is_a_function_of_the_step(pretext):
    denoiser, batch = make_tiny_pixel_denoiser(dropout=0.5), batch_of(phantoms(2))
    step, losses = make_step(pretext, denoiser), []
    for iteration, global_seed in [(1, 3), (1, 4), (2, 4)]:
        torch.manual_seed(global_seed)
        losses.append(step(make_engine(denoiser, iteration=iteration), batch)["loss"])
    assert losses[0] == losses[1] != losses[2]
    assert all(parameter.grad is not None for parameter in denoiser.parameters())


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were():
    denoiser, image = make_tiny_pixel_denoiser(), phantoms(2)
    image[0, 0, 1, 1] = float("nan")
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="step 7: expected finite losses"):
        make_step(PRETEXTS[0], denoiser)(make_engine(denoiser, 1e-2, iteration=7), batch_of(image))
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


@both
def test_validation_is_the_same_each_time_and_in_any_batches(pretext):
    denoiser, image = make_tiny_pixel_denoiser(dropout=0.5).eval(), phantoms(3)
    validation = PretextValidation(pretext, 1, False, seed=0)
    together = validation(make_engine(denoiser), batch_of(image))["errors"]
    assert together.shape == (3, 1) and len(together.unique()) == 3 and not together.requires_grad
    parts = [validation(make_engine(denoiser), batch_of(image[part], part))["errors"] for part in ([2], [0, 1])]
    torch.testing.assert_close(torch.cat(parts), together[[2, 0, 1]], atol=1e-4, rtol=1e-4)
