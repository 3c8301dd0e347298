"""Images and tokens are functions of their seeds and what conditions them, whatever batch they are drawn in."""

import pytest
import torch
from conftest import make_tiny_codec, make_tiny_denoiser, randomise
from test_embedding_prior import correlated_tokens, make_tiny_prior
from test_pixel_denoiser import TINY, make_tiny_pixel_denoiser
from test_prior_step import SCHEDULE, make_step
from trainings import CPU, make_engine, perfect

from common.amp import quick_inference
from common.data.phantom import draw_chest_phantom
from common.diffusion.image_sampler import ImageSampler
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.pixel_image_sampler import PixelImageSampler
from common.diffusion.samplers import Sampler
from common.diffusion.token_sampler import TokenSampler
from common.errors import SettingsError
from common.networks.embedding_prior import PriorPass, start_prior
from common.networks.pixel_denoiser import PixelDenoiser

SEEDS = [11, 5, 8, 2, 99, 2**32 - 1, 7, 0]
ORDER = [3, 0, 7, 1, 2, 6, 5, 4]
TOKENS = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(1))
IMAGE = draw_chest_phantom(16, 24, seed=0)


def make_sampler(image_size=32, guidance_scale=2.0, method="dpm_solver++_2m", latents_std=1.0, amp=False):
    codec = make_tiny_codec()
    codec.set_statistics(torch.zeros(2), torch.full((2,), latents_std), 1)
    sampler = Sampler(SCHEDULE, method, 3, guidance_scale=guidance_scale)
    return ImageSampler(make_tiny_denoiser(), codec, sampler, image_size, amp, CPU)


def cosine(prediction_type="epsilon"):
    return NoiseSchedule("cosine", prediction_type, 4000)


def make_pixel_sampler(
    denoiser=None, image_size=(16, 24), method="ddim", eta=0.0, amp=False, prediction_type="epsilon"
):
    sampler = Sampler(cosine(prediction_type), method, 4, spacing="leading", eta=eta)
    return PixelImageSampler(denoiser or make_tiny_pixel_denoiser(), sampler, image_size, amp, CPU)


def make_token_sampler(prior=None, steps=4, guidance_scale=1.0, labels=("a", "b")):
    """A sampler of an untrained prior, no weight zero, for tokens 2×6."""
    if prior is None:
        prior = make_tiny_prior(labels=labels, dropout=0.5)
        randomise(prior, 0.3)
        prior.components.fit(correlated_tokens(50))
    return TokenSampler(prior, Sampler(SCHEDULE, "dpm_solver++_2m", steps, guidance_scale=guidance_scale), CPU)


def latents(**settings):
    sampler = make_sampler(**settings)
    return (sampler.denoiser, sampler.codec), lambda rows: sampler.sample(TOKENS[rows], [SEEDS[row] for row in rows])


def pixels(**settings):
    sampler = make_pixel_sampler(make_tiny_pixel_denoiser(dropout=0.5), **settings)
    return (sampler.denoiser,), lambda rows: sampler.sample([SEEDS[row] for row in rows])


def tokens(label="a", **settings):
    sampler = make_token_sampler(**settings)
    return (sampler.prior,), lambda rows: sampler.sample([SEEDS[row] for row in rows], label)


# ---- what all share ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "settings", "shape"),
    [
        (latents, {}, (1, 32, 32)),
        (latents, {"method": "heun", "guidance_scale": 1.0}, (1, 32, 32)),
        *((pixels, {"method": method, "eta": eta}, (1, 16, 24)) for method, eta in [("ddim", 1.0), ("heun", 0.0)]),
        *((tokens, {"guidance_scale": scale}, (2, 6)) for scale in (1.0, 2.0)),
    ],
)
def test_a_sample_depends_neither_on_its_batch_nor_on_its_place_nor_on_training_mode(make, settings, shape):
    networks, sample = make(**settings)
    together = sample(range(8))
    assert together.shape == (8, *shape) and together.dtype == torch.float32 and not together.requires_grad
    assert together.flatten(1).std(0).mean() > 0.01  # else all would be equal anyway
    for network in networks:
        network.train()
    assert torch.equal(sample(range(8)), together) and not any(network.training for network in networks)
    parts = [sample(part) for part in (ORDER[:1], ORDER[1:4], ORDER[4:])]
    torch.testing.assert_close(torch.cat(parts), together[ORDER], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("make", "bound"), [(latents, 0.05), (pixels, 0.3)])
def test_mixed_precision_stays_close_and_ends_in_float32(make, bound):
    images, expected = (make(amp=amp)[1]([0, 1]) for amp in (True, False))
    assert images.dtype == torch.float32
    assert (images - expected).abs().mean() < 0.05 and (images - expected).abs().max() < bound


# ---- latents -------------------------------------------------------------------------------------------------------


def test_tokens_and_seed_make_the_image():
    first = make_sampler().sample(TOKENS[:1], [3])
    assert (first - make_sampler().sample(TOKENS[:1], [4])).abs().mean() > 0.01
    assert (first - make_sampler().sample(TOKENS[1:2], [3])).abs().mean() > 0.001


def test_guidance_leads_away_from_the_null_context():
    sampler = make_sampler(guidance_scale=0.0)
    unconditional = sampler.sample(TOKENS[:2], [3, 3])
    torch.testing.assert_close(unconditional[0], unconditional[1], atol=1e-5, rtol=0)
    conditional, guided = (make_sampler(guidance_scale=scale).sample(TOKENS[:1], [3]) for scale in (1.0, 3.0))
    assert (guided - unconditional[:1]).norm() > 1.5 * (conditional - unconditional[:1]).norm()
    torch.nn.init.normal_(sampler.denoiser.null_context)
    assert (sampler.sample(TOKENS[:1], [3]) - unconditional[:1]).abs().mean() > 0.001


def test_images_are_clipped_to_their_range():
    images = make_sampler(latents_std=300.0).sample(TOKENS, SEEDS)
    assert images.min() == 0.0 and images.max() == 1.0


def test_a_network_that_was_sampled_from_is_as_it_was_and_can_be_trained():
    sampler = make_sampler()
    before = {name: (value.clone(), value.stride()) for name, value in sampler.denoiser.state_dict().items()}
    blocks = [module for module in sampler.denoiser.modules() if hasattr(module, "use_flash_attention")]
    sampler.sample(TOKENS[:1], [3])
    assert blocks and not any(block.use_flash_attention for block in blocks)
    for name, value in sampler.denoiser.state_dict().items():
        assert torch.equal(value, before[name][0]) and value.stride() == before[name][1]
    noisy, timesteps = torch.randn(1, 2, 4, 4), torch.ones(1)
    sampler.denoiser(noisy, timesteps, sampler.denoiser.encode_tokens(TOKENS[:1])).sum().backward()


def test_quick_inference_gives_the_same_output():
    denoiser = make_tiny_denoiser().eval()
    arguments = torch.randn(2, 2, 8, 8), torch.tensor([3.0, 700.0]), denoiser.encode_tokens(TOKENS[:2])
    with torch.no_grad():
        expected = denoiser(*arguments)
        with quick_inference(denoiser, CPU, amp=False):
            found = denoiser(*arguments)
            assert denoiser.unet.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_latents_fit_the_image():
    assert make_sampler(image_size=64).latents_shape == (2, 8, 8)
    assert make_sampler(image_size=64).sample(TOKENS[:1], [3]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("image_size", [31, 24, 40])  # 8 of the codec times 2 of the denoiser
def test_a_size_that_the_networks_cannot_halve_is_refused(image_size):
    with pytest.raises(SettingsError, match=f"16.*{image_size}"):
        make_sampler(image_size=image_size)


# ---- pixels --------------------------------------------------------------------------------------------------------


class KnowingDenoiser(PixelDenoiser):
    """Knows the one image there is, and so predicts its noise exactly; remembers what it saw."""

    def __init__(self, schedule, signed_image):
        super().__init__(**TINY)
        self.predict, self.seen = perfect(schedule, signed_image), []

    def forward(self, noisy, timesteps, context=None):
        self.seen.append(noisy)
        return self.predict(noisy, timesteps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("method", ["ddim", "dpm_solver++_2m", "heun"])
def test_a_denoiser_that_knows_its_image_draws_it(prediction_type, method):
    denoiser = KnowingDenoiser(cosine(prediction_type), 2.0 * IMAGE - 1.0)
    images = make_pixel_sampler(denoiser, method=method, prediction_type=prediction_type).sample([3, 4])
    torch.testing.assert_close(images, IMAGE.expand(2, 1, 16, 24), atol=1e-4, rtol=0)


def test_a_denoiser_that_errs_stays_in_the_range_at_every_step():
    """It believes in an image far outside; the states would follow it without the clipping."""
    denoiser = KnowingDenoiser(cosine(), torch.full((1, 16, 24), 9.0))
    sampler = make_pixel_sampler(denoiser)
    images = sampler.sample(SEEDS)
    assert torch.equal(images, torch.ones_like(images))
    clipped = [noisy.mean().item() for noisy in denoiser.seen]
    denoiser.seen.clear()
    sampler.sampler.sample(denoiser, (1, 16, 24), SEEDS)
    unclipped = [noisy.mean().item() for noisy in denoiser.seen]
    assert max(clipped) < 1.1 and max(unclipped) > 5.0


@pytest.mark.parametrize("image_size", [(15, 24), (16, 23), (0, 16), (16,), (1, 16, 24), 16.5, (16, -2)])
def test_a_size_that_the_network_cannot_draw_is_refused(image_size):
    with pytest.raises(SettingsError, match="multiple of 2"):
        make_pixel_sampler(image_size=image_size)


def test_no_seeds_are_refused():
    with pytest.raises(SettingsError):
        make_pixel_sampler().sample([])


# ---- tokens --------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_their_label():
    drawn = {label: tokens(label)[1](range(8)) for label in ("a", "b", None)}
    assert torch.pdist(make_token_sampler().prior.components.encode(drawn["a"])).min() > 0.01
    assert all((drawn[label] - drawn["a"]).abs().mean() > 0.01 for label in ("b", None))


def test_an_unknown_label_is_refused_with_those_that_are_known():
    with pytest.raises(SettingsError, match=r"a, b.*'c'"):
        make_token_sampler().sample([0], "c")
    with pytest.raises(SettingsError, match=r"none.*'a'"):
        make_token_sampler(labels=()).check_label("a")
    make_token_sampler().check_label(None)


CENTRES = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(3)) * 4 + 10  # of "a" and "b"


@pytest.fixture(scope="module")
def trained():
    """A prior that saw two clusters of tokens, each with its label."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    seen = CENTRES[labels] + 0.5 * torch.randn(64, 2, 6, generator=torch.Generator().manual_seed(0))
    prior = start_prior(make_tiny_prior(num_components=3), seen)
    step, engine = make_step(prior), make_engine(PriorPass(prior), lr=1e-2)
    for number in range(120):
        rows = torch.arange(16) + 16 * (number % 4)
        draw = torch.arange(16 * number, 16 * number + 16)
        step(engine, {"tokens": seen[rows], "label": labels[rows], "draw": draw, "index": rows})
    return step.ema.network


@pytest.mark.parametrize(
    ("label", "low", "high", "furthest"), [("a", 0.0, 0.05, 0.2), ("b", 0.95, 1.0, 0.2), (None, 0.25, 0.75, 0.25)]
)
def test_a_trained_prior_gives_tokens_of_the_label_and_of_both_without_one(trained, label, low, high, furthest):
    drawn = make_token_sampler(trained, steps=20).sample(list(range(64)), label)
    distances = torch.cdist(drawn.flatten(1), CENTRES.flatten(1))
    assert low <= distances.argmin(1).float().mean() <= high
    assert distances.amin(1).median() < furthest * (CENTRES[0] - CENTRES[1]).norm()
