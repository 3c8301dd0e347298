"""Every step of training, validation and sampling on torch's meta device, which finds a tensor left on the CPU.

No GPU is needed for that: operations on tensors of two devices fail there as on a GPU, and nothing is computed.
"""

import pytest
import test_autoencoder_step
import test_denoising_pretrain_step
import test_denoising_step
import test_pretext_steps
import test_prior_step
import test_segmentation_step
import torch
from conftest import make_tiny_codec, make_tiny_denoiser, make_tiny_store
from test_denoising_step import SELECTION
from test_diffusion_segmenter import make_tiny_segmenter
from test_embedding_prior import correlated_tokens
from test_pixel_denoiser import make_tiny_pixel_denoiser
from torch.utils.data import default_collate

from common.data.latent_store import LatentDataset
from common.diffusion.image_sampler import ImageSampler
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.pixel_image_sampler import PixelImageSampler
from common.diffusion.samplers import Sampler
from common.diffusion.token_sampler import TokenSampler
from common.networks.conditioning import named_tokens
from common.networks.dino import DinoEncoder
from common.networks.embedding_prior import PriorPass
from common.networks.latent_denoiser import DenoisingPass
from common.training.denoising_step import DenoisingValidation, ImageDenoisingValidation
from common.training.pretext_steps import GaussianNoise, MaskedPatches, PretextValidation
from common.training.prior_step import PriorValidation

META = torch.device("meta")


@pytest.fixture(autouse=True)
def numbers(monkeypatch):
    """What steps log and check are numbers, which meta tensors lack: give 1, and zeros where they come to the CPU."""
    item, truth, cpu = torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 1 if self.is_meta else item(self))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True if self.is_meta else truth(self))
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self: torch.zeros_like(self, device="cpu") if self.is_meta else cpu(self)
    )


def engine_of(module, network):
    engine = module.make_engine(network)
    engine.state.device = META
    return engine


@pytest.fixture
def latents(tmp_path):
    dataset = LatentDataset(make_tiny_store(tmp_path), "train")
    return default_collate([dataset[index] for index in range(3)])


def all_on_meta(network):
    return all(weight.is_meta and (weight.grad is None or weight.grad.is_meta) for weight in network.parameters())


def test_a_tensor_left_on_the_cpu_is_found():
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META) + torch.ones(3)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_training_of_the_denoiser(latents, accumulation_steps):
    network = DenoisingPass(make_tiny_denoiser().to(META), alignment_dim=6).to(META)
    options = {"alignment_weight": 0.5, "accumulation_steps": accumulation_steps, "min_snr_gamma": 5.0}
    for kind in test_denoising_step.SCHEDULES:
        step = test_denoising_step.make_step(network, kind, selection=SELECTION, **options)
        step.ema.network, step.ema.source = network.denoiser, network.denoiser
        step(engine_of(test_denoising_step, network), latents)
    validation = DenoisingValidation(schedule=step.schedule, selection=SELECTION, amp=True)
    assert validation(engine_of(test_denoising_step, network.denoiser), latents)["errors"].is_meta
    assert all_on_meta(network)


def test_training_of_the_prior():
    prior = test_prior_step.make_prior().to(META)
    batch = test_prior_step.batch_of(correlated_tokens(3))
    step = test_prior_step.make_step(prior)
    step(engine_of(test_prior_step, PriorPass(prior)), batch)
    validation = PriorValidation(schedule=step.schedule)
    assert validation(engine_of(test_prior_step, prior), batch)["errors"].is_meta
    assert all_on_meta(prior)


def test_training_of_the_autoencoder():
    codec = make_tiny_codec().to(META)
    step = test_autoencoder_step.make_step(codec, adv_start_step=9)  # MONAI's adversarial loss knows no meta tensors
    step(engine_of(test_autoencoder_step, codec), test_autoencoder_step.phantom_batch())
    assert all_on_meta(codec)


def test_pre_training_on_images():
    network, batch = make_tiny_pixel_denoiser().to(META), test_pretext_steps.batch_of(test_pretext_steps.phantoms(2))
    step = test_denoising_pretrain_step.make_step(network)
    step(engine_of(test_denoising_pretrain_step, network), batch)
    engine = engine_of(test_pretext_steps, network)
    assert ImageDenoisingValidation(schedule=step.schedule)(engine, batch)["errors"].is_meta
    for pretext in (GaussianNoise(0.5), MaskedPatches(4, 0.5)):
        test_pretext_steps.make_step(pretext, network)(engine, batch)
        assert PretextValidation(pretext, 1, True, 0)(engine, batch)["errors"].is_meta
    assert all_on_meta(network)


def test_fine_tuning_of_the_segmenter():
    segmenter = make_tiny_segmenter().to(META)
    test_segmentation_step.make_step(segmenter)(
        engine_of(test_segmentation_step, segmenter), test_segmentation_step.make_batch()
    )
    assert all_on_meta(segmenter)


@pytest.mark.parametrize("method", ["ddim", "dpm_solver++_2m", "euler", "heun"])
def test_sampling(method):
    codec = make_tiny_codec()
    codec.set_statistics(torch.zeros(2), torch.ones(2), 1)
    rule = Sampler(NoiseSchedule("rectified_flow", "flow"), method, 3, guidance_scale=2.0, guidance_interval=(0.2, 0.8))
    sampler = ImageSampler(make_tiny_denoiser().to(META), codec.to(META), rule, 32, True, META)
    assert sampler.sample(torch.zeros(2, 2, 6), [0, 1]).shape == (2, 1, 32, 32)
    image = torch.zeros(1, 1, 32, 32)
    assert sampler.inpaint(image, image > 0, torch.zeros(2, 2, 6), [0, 1]).shape == (2, 1, 32, 32)
    rule = Sampler(NoiseSchedule("cosine", "v_prediction"), method, 3)
    pixels = PixelImageSampler(make_tiny_pixel_denoiser().to(META), rule, (16, 24), True, META)
    assert pixels.sample([0, 1]).shape == (2, 1, 16, 24)


def test_sampling_of_tokens():
    prior = test_prior_step.make_prior().to(META)
    sampler = TokenSampler(prior, Sampler(test_prior_step.SCHEDULE, "dpm_solver++_2m", 3), META)
    assert sampler.sample([0, 1], "a").shape == (2, 2, 6)


def test_encoding(tiny_dino):
    encoder = DinoEncoder(str(tiny_dino), 28).to(META)
    assert all(value.is_meta for value in named_tokens(encoder, torch.zeros(1, 1, 32, 32, device=META), 2).values())
