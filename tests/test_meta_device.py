"""Every step of training, validation and sampling on torch's meta device, which finds a tensor left on the CPU.

No GPU is needed for that: operations on tensors of two devices fail there as on a GPU, and nothing is computed.
"""

import pytest
import torch
from conftest import make_tiny_codec, make_tiny_denoiser, make_tiny_store
from test_denoising_step import SCHEDULES, SELECTION, make_step
from test_pixel_denoiser import make_tiny_pixel_denoiser
from test_prior_step import SCHEDULE, make_prior
from test_training_steps import DIFFUSION, WORKFLOWS, batch_of
from trainings import make_engine

from common.data.latent_store import LatentDataset
from common.diffusion.image_sampler import ImageSampler
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.pixel_image_sampler import PixelImageSampler
from common.diffusion.samplers import Sampler
from common.diffusion.token_sampler import TokenSampler
from common.networks.conditioning import named_tokens
from common.networks.dino import DinoEncoder
from common.networks.latent_denoiser import DenoisingPass

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


def engine_of(network):
    engine = make_engine(network)
    engine.state.device = META
    return engine


def all_on_meta(network):
    return all(weight.is_meta and (weight.grad is None or weight.grad.is_meta) for weight in network.parameters())


def test_a_tensor_left_on_the_cpu_is_found():
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META) + torch.ones(3)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_training_and_validation(tmp_path, name):
    network, step, validation, data = WORKFLOWS[name](make_tiny_store(tmp_path), 0.0)
    network.to(META), step.ema.network.to(META)
    batch = batch_of(data[0], [0, 1, 2] if len(data[0]) > 2 else [0, 1])
    step(engine_of(network), batch)
    if name in DIFFUSION:
        assert validation(engine_of(step.ema.network), batch)["errors"].is_meta
    assert all_on_meta(network)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_training_of_the_denoiser_with_all_its_terms(tmp_path, kind, accumulation_steps):
    network = DenoisingPass(make_tiny_denoiser().to(META), alignment_dim=6).to(META)
    options = {"alignment_weight": 0.5, "accumulation_steps": accumulation_steps, "min_snr_gamma": 5.0}
    step = make_step(network, kind, selection=SELECTION, **options)
    step.ema.network, step.ema.source = network.denoiser, network.denoiser
    step(engine_of(network), batch_of(LatentDataset(make_tiny_store(tmp_path), "train"), [0, 1, 2]))
    assert all_on_meta(network)


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
    prior = make_prior().to(META)
    sampler = TokenSampler(prior, Sampler(SCHEDULE, "dpm_solver++_2m", 3), META)
    assert sampler.sample([0, 1], "a").shape == (2, 2, 6)


def test_encoding(tiny_dino):
    encoder = DinoEncoder(str(tiny_dino), 28).to(META)
    assert all(value.is_meta for value in named_tokens(encoder, torch.zeros(1, 1, 32, 32, device=META), 2).values())
