import pytest
import torch
from conftest import make_tiny_codec, make_tiny_denoiser

from common.amp import quick_inference
from common.diffusion.image_sampler import ImageSampler
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.samplers import Sampler

CPU = torch.device("cpu")
SEEDS = [11, 5, 8, 2, 99, 2**40, 7, 0]


@pytest.fixture(scope="module")
def tokens():
    return torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(1))


def make_sampler(image_size=32, guidance_scale=2.0, method="dpm_solver++_2m", latents_std=1.0, amp=False):
    codec = make_tiny_codec()
    codec.set_statistics(torch.zeros(2), torch.full((2,), latents_std), 1)
    sampler = Sampler(NoiseSchedule("rectified_flow", "flow"), method, 3, guidance_scale=guidance_scale)
    return ImageSampler(make_tiny_denoiser(), codec, sampler, image_size, amp, CPU)


@pytest.mark.parametrize(("method", "guidance_scale"), [("dpm_solver++_2m", 2.0), ("heun", 1.0)])
def test_a_sample_depends_neither_on_its_batch_nor_on_its_place(tokens, method, guidance_scale):
    sampler = make_sampler(method=method, guidance_scale=guidance_scale)
    together = sampler.sample(tokens, SEEDS)
    assert together.shape == (8, 1, 32, 32)
    assert together.std(0).mean() > 0.01  # else all would be equal anyway
    alone = torch.cat([sampler.sample(tokens[n : n + 1], [seed]) for n, seed in enumerate(SEEDS)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    shuffled = sampler.sample(tokens[order], [SEEDS[n] for n in order])
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=0)


def test_tokens_and_seed_make_the_image(tokens):
    first = make_sampler().sample(tokens[:1], [3])
    assert torch.equal(first, make_sampler().sample(tokens[:1], [3]))
    assert (first - make_sampler().sample(tokens[:1], [4])).abs().mean() > 0.01
    assert (first - make_sampler().sample(tokens[1:2], [3])).abs().mean() > 0.001


def test_guidance_leads_away_from_the_null_context(tokens):
    sampler = make_sampler(guidance_scale=0.0)
    unconditional = sampler.sample(tokens[:2], [3, 3])
    torch.testing.assert_close(unconditional[0], unconditional[1], atol=1e-5, rtol=0)
    conditional, guided = (make_sampler(guidance_scale=scale).sample(tokens[:1], [3]) for scale in (1.0, 3.0))
    assert (guided - unconditional[:1]).norm() > 1.5 * (conditional - unconditional[:1]).norm()
    torch.nn.init.normal_(sampler.denoiser.null_context)
    assert (sampler.sample(tokens[:1], [3]) - unconditional[:1]).abs().mean() > 0.001


def test_images_are_clipped_to_their_range(tokens):
    images = make_sampler(latents_std=300.0).sample(tokens, SEEDS)
    assert images.min() == 0.0 and images.max() == 1.0
    assert images.dtype == torch.float32


def test_networks_in_training_mode_sample_in_evaluation_mode_without_gradients(tokens):
    sampler = make_sampler()
    sampler.denoiser.train()
    sampler.codec.train()
    images = sampler.sample(tokens[:1], [3])
    assert not sampler.denoiser.training and not sampler.codec.training
    assert not images.requires_grad


def test_a_network_that_was_sampled_from_is_as_it_was_and_can_be_trained(tokens):
    sampler = make_sampler()
    before = {name: (value.clone(), value.stride()) for name, value in sampler.denoiser.state_dict().items()}
    blocks = [module for module in sampler.denoiser.modules() if hasattr(module, "use_flash_attention")]
    sampler.sample(tokens[:1], [3])
    assert blocks and not any(block.use_flash_attention for block in blocks)
    for name, value in sampler.denoiser.state_dict().items():
        assert torch.equal(value, before[name][0]) and value.stride() == before[name][1]
    noisy, timesteps = torch.randn(1, 2, 4, 4), torch.ones(1)
    sampler.denoiser(noisy, timesteps, sampler.denoiser.encode_tokens(tokens[:1])).sum().backward()


def test_quick_inference_gives_the_same_output(tokens):
    denoiser = make_tiny_denoiser().eval()
    arguments = torch.randn(2, 2, 8, 8), torch.tensor([3.0, 700.0]), denoiser.encode_tokens(tokens[:2])
    with torch.no_grad():
        expected = denoiser(*arguments)
        with quick_inference(denoiser, CPU, amp=False):
            found = denoiser(*arguments)
            assert denoiser.unet.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_mixed_precision_stays_close_and_decodes_in_float32(tokens):
    images = make_sampler(amp=True).sample(tokens[:2], [3, 4])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, make_sampler().sample(tokens[:2], [3, 4]), atol=0.05, rtol=0)


def test_the_latents_fit_the_image(tokens):
    assert make_sampler(image_size=64).latents_shape == (2, 8, 8)
    assert make_sampler(image_size=64).sample(tokens[:1], [3]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("image_size", [31, 24, 40])  # 8 of the codec times 2 of the denoiser
def test_a_size_that_the_networks_cannot_halve_is_refused(image_size):
    with pytest.raises(ValueError, match=f"multiples of 16, found {image_size}"):
        make_sampler(image_size=image_size)
