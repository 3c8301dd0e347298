"""Pre-training by denoising: what is random is a function of draw and step, and images enter as [-1, 1]."""

from types import SimpleNamespace

import pytest
import torch
from conftest import randomise
from test_pixel_denoiser import TINY, make_tiny_pixel_denoiser
from torch import nn

from common.data.phantom import draw_chest_phantom
from common.diffusion.noise_schedule import NoiseSchedule
from common.intensity import to_signed
from common.networks.pixel_denoiser import PixelDenoiser
from common.seeding import Purpose, derive_seed
from common.training.denoising_step import ImageDenoisingStep, ImageDenoisingValidation
from common.training.ema import ExponentialMovingAverage

CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule("cosine", "epsilon", num_train_timesteps=4000)


class Known(nn.Module):
    """Predicts by a function of (noisy, timesteps), and keeps what it was given."""

    def __init__(self, predict):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.predict = predict
        self.given = []

    def forward(self, noisy, timesteps):
        self.given.append(SimpleNamespace(noisy=noisy, timesteps=timesteps))
        return self.predict(noisy, timesteps) + 0.0 * self.weight


def perfect(image):
    """The noise in z_t, known by whoever knows that every image is `image`."""

    def predict(noisy, timesteps):
        alpha, sigma = (part.view(-1, 1, 1, 1) for part in SCHEDULE.alpha_sigma(timesteps))
        return (noisy - alpha * to_signed(image)) / sigma

    return predict


def make_engine(network, lr=0.0, iteration=1):
    optimizer = torch.optim.Adam(network.parameters(), lr)
    return SimpleNamespace(state=SimpleNamespace(device=CPU, iteration=iteration), network=network, optimizer=optimizer)


def make_step(network, augmentation=None):
    ema = ExponentialMovingAverage(network, 0.9)
    return ImageDenoisingStep(schedule=SCHEDULE, ema=ema, augmentation=augmentation, amp=False)


def batch_of(image, draws=None):
    return {"image": image, "draw": torch.arange(len(image)) if draws is None else torch.as_tensor(draws)}


def phantoms(count, size=16):
    return torch.stack([draw_chest_phantom(size, size, seed=seed) for seed in range(count)])


def test_who_knows_the_image_has_no_error_so_images_enter_as_minus_one_to_one():
    image = phantoms(1)
    network = Known(perfect(image))
    assert make_step(network)(make_engine(network), batch_of(image.repeat(16, 1, 1, 1)))["loss"] < 1e-5
    validation = ImageDenoisingValidation(schedule=SCHEDULE, num_levels=3, amp=False, seed=0)
    errors = validation(make_engine(network), batch_of(image.repeat(4, 1, 1, 1)))["errors"]
    assert errors.shape == (4, 3) and errors.max() < 1e-5


def test_a_sample_is_treated_alike_whatever_batch_it_is_in():
    image, draws = phantoms(3), [4, 9, 10**6]
    together, alone = (Known(lambda noisy, timesteps: noisy) for _ in range(2))
    make_step(together)(make_engine(together), batch_of(image, draws))
    for number, draw in enumerate(draws):
        make_step(alone)(make_engine(alone, iteration=5), batch_of(image[number : number + 1], [draw]))
        for name in ("noisy", "timesteps"):
            assert torch.equal(getattr(alone.given[-1], name)[0], getattr(together.given[0], name)[number])
    assert len(together.given[0].timesteps.unique()) == 3 and together.given[0].timesteps.dtype == torch.int64


def test_images_are_augmented_each_by_its_draw():
    def darken(image, mask, seeds):
        assert image.shape == mask.shape and not mask.any()
        assert seeds == [derive_seed(0, Purpose.AUGMENTATION, draw) for draw in (4, 9)]
        return image / 2, mask

    image = phantoms(1)
    network = Known(perfect(image / 2))
    batch = batch_of(image.repeat(2, 1, 1, 1), [4, 9])
    assert make_step(network, darken)(make_engine(network), batch)["loss"] < 1e-5
    assert make_step(network)(make_engine(network), batch)["loss"] > 1e-3


def test_one_batch_is_learnt_by_heart():
    denoiser = PixelDenoiser(**{**TINY, "channels": [16, 32]})
    step, engine, batch = make_step(denoiser), make_engine(denoiser, lr=1e-2), batch_of(phantoms(2))
    losses = [step(engine, batch)["loss"] for _ in range(50)]
    assert losses[0] == pytest.approx(1.0, abs=0.15), "a new denoiser predicts no noise"
    assert losses[-1] < losses[0] / 2.5
    assert step.ema.num_updates == 50


def test_dropout_is_a_function_of_the_step_and_touches_no_other_randomness():
    denoiser = make_tiny_pixel_denoiser(dropout=0.5)
    step, batch = make_step(denoiser), batch_of(phantoms(2))
    losses = []
    for iteration, global_seed in [(1, 3), (1, 4), (2, 4)]:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        losses.append(step(make_engine(denoiser, iteration=iteration), batch)["loss"])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


def test_validation_is_the_same_each_time_in_any_batches_and_without_dropout():
    denoiser, image = make_tiny_pixel_denoiser(dropout=0.5).eval(), phantoms(3)
    randomise(denoiser, 0.3)
    validation = ImageDenoisingValidation(schedule=SCHEDULE, num_levels=2, amp=False, seed=0)
    together = validation(make_engine(denoiser), batch_of(image))["errors"]
    assert len(together.unique()) == 6 and not together.requires_grad
    parts = [validation(make_engine(denoiser), batch_of(image[part], part))["errors"] for part in ([2], [0, 1])]
    torch.testing.assert_close(torch.cat(parts), together[[2, 0, 1]], atol=1e-4, rtol=1e-4)


def test_strata_go_from_least_to_most_noise():
    network = Known(lambda noisy, timesteps: noisy)
    ImageDenoisingValidation(schedule=SCHEDULE, amp=False)(make_engine(network), batch_of(torch.rand(20, 1, 2, 2)))
    for level, given in enumerate(network.given):
        assert 1000 * level <= given.timesteps.min() and given.timesteps.max() < 1000 * (level + 1)
