import pytest
import torch
from test_pixel_denoiser import TINY, make_tiny_pixel_denoiser

from common.data.phantom import draw_chest_phantom
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.pixel_image_sampler import PixelImageSampler
from common.diffusion.samplers import Sampler
from common.errors import SettingsError
from common.networks.pixel_denoiser import PixelDenoiser

CPU = torch.device("cpu")
SEEDS = [11, 5, 8, 2**40, 0]
IMAGE = draw_chest_phantom(16, 24, seed=0)


class KnowingDenoiser(PixelDenoiser):
    """Knows the one image there is, and so predicts its noise exactly; remembers what it saw."""

    def __init__(self, schedule, signed_image):
        super().__init__(**TINY)
        self.schedule, self.signed_image = schedule, signed_image
        self.seen = []

    def forward(self, noisy, timesteps, context=None):
        self.seen.append(noisy)
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in self.schedule.alpha_sigma(timesteps))
        image = self.signed_image.expand_as(noisy)
        return self.schedule.target(image, (noisy - alpha * image) / sigma, timesteps)


def make_schedule(prediction_type="epsilon"):
    return NoiseSchedule("cosine", prediction_type, 4000)


def make_sampler(denoiser=None, image_size=(16, 24), method="ddim", eta=0.0, amp=False, prediction_type="epsilon"):
    rule = Sampler(make_schedule(prediction_type), method, 4, spacing="leading", eta=eta)
    return PixelImageSampler(denoiser or make_tiny_pixel_denoiser(), rule, image_size, amp, CPU)


@pytest.mark.parametrize(("method", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("heun", 0.0)])
def test_a_sample_depends_neither_on_its_batch_nor_on_its_place(method, eta):
    sampler = make_sampler(method=method, eta=eta)
    together = sampler.sample(SEEDS)
    assert together.shape == (5, 1, 16, 24) and together.dtype == torch.float32
    assert together.std(0).mean() > 0.01  # else all would be equal anyway
    alone = torch.cat([sampler.sample([seed]) for seed in SEEDS])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(sampler.sample(SEEDS[::-1]), together.flip(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("method", ["ddim", "dpm_solver++_2m", "heun"])
def test_a_denoiser_that_knows_its_image_draws_it(prediction_type, method):
    denoiser = KnowingDenoiser(make_schedule(prediction_type), 2.0 * IMAGE - 1.0)
    images = make_sampler(denoiser, method=method, prediction_type=prediction_type).sample([3, 4])
    torch.testing.assert_close(images, IMAGE.expand(2, 1, 16, 24), atol=1e-4, rtol=0)


def test_a_denoiser_that_errs_stays_in_the_range_at_every_step():
    """It believes in an image far outside; the states would follow it without the clipping."""
    denoiser = KnowingDenoiser(make_schedule(), torch.full((1, 16, 24), 9.0))
    sampler = make_sampler(denoiser)
    images = sampler.sample(SEEDS)
    assert torch.equal(images, torch.ones_like(images))
    clipped = [noisy.mean().item() for noisy in denoiser.seen]
    denoiser.seen.clear()
    sampler.sampler.sample(denoiser, (1, 16, 24), SEEDS)
    unclipped = [noisy.mean().item() for noisy in denoiser.seen]
    assert max(clipped) < 1.1 and max(unclipped) > 5.0


def test_a_network_in_training_mode_samples_in_evaluation_mode_without_gradients():
    sampler = make_sampler(make_tiny_pixel_denoiser(dropout=0.5).train())
    images = sampler.sample([3])
    assert torch.equal(images, sampler.sample([3]))
    assert not sampler.denoiser.training and not images.requires_grad


def test_mixed_precision_stays_close():
    images = make_sampler(amp=True).sample([3, 4])
    assert images.dtype == torch.float32
    assert (images - make_sampler().sample([3, 4])).abs().mean() < 0.05


@pytest.mark.parametrize("image_size", [(15, 24), (16, 23), (0, 16), (16,), (1, 16, 24), 16.5, (16, -2)])
def test_a_size_that_the_network_cannot_draw_is_refused(image_size):
    with pytest.raises(SettingsError, match="multiple of 2"):
        make_sampler(image_size=image_size)


def test_no_seeds_are_refused():
    with pytest.raises(SettingsError):
        make_sampler().sample([])
