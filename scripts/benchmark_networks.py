"""The networks of the benchmark: ours and peers of the same size, in training and in use."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.amp import autocast, has_bfloat16, quick_inference
from common.diffusion.samplers import Sampler
from common.experiments.benchmark import Row
from common.networks.conditioning import named_tokens
from common.networks.latent_codec import LatentCodec, VariationalPass
from common.networks.latent_denoiser import DenoisingPass
from common.pipelines import DentalSegmenter, DinoDiffusion
from common.training.autoencoder_step import AutoencoderStep
from common.training.denoising_step import DenoisingStep
from common.training.ema import ExponentialMovingAverage
from common.training.losses import ReconstructionLoss
from common.training.segmentation_step import SegmentationStep

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
STEPS = 4  # of sampling, that are timed at once
BATCH_SIZES = (1, 8, 32, 128)

Calls = dict[str, Callable[[], object]]


class Setting:
    """What the rows share: device, batch size of training, networks, a folder, and whether all is to be tiny."""

    def __init__(self, device: torch.device, batch_size: int, folder: Path, tiny: bool) -> None:
        self.device, self.batch_size, self.folder, self.tiny = device, batch_size, folder, tiny
        self.pipe = DinoDiffusion.from_bundle(BUNDLES / "cxr_dino_latent_diffusion", device)

    def peers(self) -> dict[str, nn.Module]:
        """U-Nets of the size of ours, by who makes them."""
        size: Any = {"spatial_dims": 2, "in_channels": 4, "out_channels": 4, "channels": (64, 128, 192)}
        size |= {"num_res_blocks": 1, "attention_levels": (False, True, True), "num_head_channels": 32}
        size |= {"with_conditioning": True, "cross_attention_dim": 192}
        found: dict[str, Any] = {
            "MONAI": DiffusionModelUNet(**size),
            "MONAI, fused attention": DiffusionModelUNet(**size, use_flash_attention=True),
        }
        if HAS_DIFFUSERS:
            from diffusers import UNet2DConditionModel

            found["diffusers"] = UNet2DConditionModel(
                **{"in_channels": 4, "out_channels": 4, "sample_size": 32, "layers_per_block": 1},
                block_out_channels=(64, 128, 192),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=192,
                attention_head_dim=(2, 4, 6),  # the number of heads, whatever its name: 32 channels each, as ours
            )
        return {name: network.to(self.device) for name, network in found.items()}

    def latents(self, count: int) -> Tensor:
        """Random ones."""
        return torch.randn(count, *self.pipe.image_sampler.latents_shape, device=self.device)

    def context(self, count: int) -> Tensor:
        """Random ones."""
        return torch.randn(count, *self.pipe.network.null_context.shape[1:], device=self.device)


def size_of(networks: dict[str, nn.Module]) -> dict[str, int]:
    """Numbers of parameters."""
    return {name: sum(each.numel() for each in network.parameters()) for name, network in networks.items()}


def predicted(network: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """What a U-Net of whoever makes it gives."""
    if isinstance(network, DiffusionModelUNet):
        return network(noisy, timesteps, context=context)
    return network(noisy, timesteps, encoder_hidden_states=context).sample


def precisions(setting: Setting) -> dict[str, bool]:
    """Whether to compute in bfloat16, by what follows a contender's name: both ways where the hardware has it."""
    return {"": False, ", bfloat16": True} if has_bfloat16(setting.device) else {"": False}


def own_step(setting: Setting, amp: bool = True) -> Callable[[dict[str, Any]], object]:
    """Our step of training the denoiser, as configs/train.yaml puts it together."""
    pipe, network = setting.pipe, deepcopy(setting.pipe.network).requires_grad_()
    ema = ExponentialMovingAverage(network, 0.999)
    step = DenoisingStep(schedule=pipe.schedule, selection=pipe.selection, uncond_prob=0.1, ema=ema, amp=amp)
    return partial(step, engine_of(setting, DenoisingPass(network)))


def engine_of(setting: Setting, network: nn.Module) -> Any:
    """What a step needs of a trainer."""
    state = SimpleNamespace(device=setting.device, iteration=1)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    return SimpleNamespace(state=state, network=network, optimizer=optimizer, non_blocking=False)


def random_batch(setting: Setting, count: int) -> dict[str, Any]:
    """As the store gives it."""
    dim = setting.pipe.network.context_encoder.scaler.tokens_mean.shape[1]
    grid = setting.pipe.patch_grid
    tokens = {"cls_token": torch.randn(count, dim), "register_tokens": torch.zeros(count, 0, dim)}
    latents = {name: setting.latents(count).cpu() for name in ("latents_mean", "latents_std")}
    numbers = torch.arange(count)
    return {**latents, **tokens, "patch_grid": torch.randn(count, grid, grid, dim), "draw": numbers, "index": numbers}


def train_step(setting: Setting) -> Iterator[Row]:
    """Forward, backward, clipping, fused AdamW and EMA."""
    batch = random_batch(setting, setting.batch_size)

    def of_peer(peer: nn.Module, amp: bool) -> Callable[[], object]:
        optimizer = torch.optim.AdamW(peer.parameters(), 1e-4, fused=True)
        average = AveragedModel(peer, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        x0, context = setting.latents(setting.batch_size), setting.context(setting.batch_size)

        def call() -> None:
            noise, share = torch.randn_like(x0), torch.rand(len(x0), 1, 1, 1, device=x0.device)
            with autocast(setting.device, amp):
                output = predicted(peer, (1 - share) * x0 + share * noise, 1000 * share.flatten(), context)
            optimizer.zero_grad(set_to_none=True)
            mse_loss(output.float(), noise - x0).backward()
            nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(peer)

        return call

    calls: Calls = {}
    sizes: dict[str, int] = {}
    for suffix, amp in precisions(setting).items():
        peers = {name + suffix: peer for name, peer in setting.peers().items()}
        sizes |= size_of({f"ours{suffix}": setting.pipe.network, **peers})
        calls[f"ours{suffix}"] = partial(own_step(setting, amp), batch)
        calls |= {name: of_peer(peer.train(), amp) for name, peer in peers.items()}
    yield Row("train_step", f"step of batch {setting.batch_size}", calls, sizes)


def sample_step(setting: Setting) -> Iterator[Row]:
    """A step with guidance, both halves in one batch."""
    pipe = setting.pipe
    sampler = Sampler(pipe.schedule, "dpm_solver++_2m", STEPS, guidance_scale=2.0)
    peers = setting.peers()
    sizes = size_of({"ours": pipe.network, **peers})
    for count, (suffix, amp) in product((1,) if setting.tiny else (1, 8), precisions(setting).items()):
        context, noisy = setting.context(count), setting.latents(count)
        steps = {"ours": partial(own_steps, setting, sampler, context)}
        steps |= {name: partial(guided_steps, peer, noisy, context, STEPS) for name, peer in peers.items()}
        calls: Calls = {name: partial(computed, setting, amp, call) for name, call in steps.items()}
        with quick_inference(pipe.network, setting.device, amp):  # once for all steps; part of `sample_image`
            yield Row("sample_step", f"step of batch {count}{suffix}", calls, sizes, dict.fromkeys(calls, 1 / STEPS))


def computed(setting: Setting, amp: bool, call: Callable[[], object]) -> None:
    """Make a call in bfloat16 if wanted."""
    with autocast(setting.device, amp):
        call()


@torch.inference_mode()
def own_steps(setting: Setting, sampler: Sampler, context: Tensor) -> Tensor:
    """What `ImageSampler` does before it decodes."""
    network, shape, seeds = setting.pipe.network, setting.pipe.image_sampler.latents_shape, list(range(len(context)))
    return sampler.sample(network, shape, seeds, context, network.null_context, setting.device)


@torch.inference_mode()
def guided_steps(network: nn.Module, noisy: Tensor, context: Tensor, steps: int, ddpm: bool = False) -> Tensor:
    """So many steps of a peer, with both halves of guidance in one batch, which is the quicker way of theirs."""
    network.eval()
    scheduler = (DDPMScheduler if ddpm else DDIMScheduler)(num_train_timesteps=1000)
    scheduler.set_timesteps(1000 if ddpm else 50)
    both = torch.cat([context, torch.zeros_like(context)])
    for timestep in scheduler.timesteps[:steps]:
        timesteps = timestep.to(noisy.device).expand(2 * len(noisy))
        one, other = predicted(network, torch.cat([noisy] * 2), timesteps, both).chunk(2)
        noisy = scheduler.step(other + 2.0 * (one - other), int(timestep), noisy)[0]
    return noisy


def sample_image(setting: Setting) -> Iterator[Row]:
    """One image, from tokens to pixels, by the methods' usual numbers of steps."""
    pipe, peer = setting.pipe, setting.peers()["MONAI"]
    tokens = torch.randn(1, *pipe.network.context_encoder.scaler.tokens_mean.shape)
    noisy, context = setting.latents(1), setting.context(1)
    calls: Calls = {
        f"ours, 20 steps and decoding{suffix}": partial(replace(pipe.image_sampler, amp=amp).sample, tokens, [0])
        for suffix, amp in precisions(setting).items()
    }
    calls |= {
        "MONAI, 50 steps of DDIM": partial(guided_steps, peer, noisy, context, STEPS),
        "MONAI, 1000 steps of DDPM": partial(guided_steps, peer, noisy, context, STEPS, ddpm=True),
    }
    factors = {"MONAI, 50 steps of DDIM": 50 / STEPS, "MONAI, 1000 steps of DDPM": 1000 / STEPS}
    note = f"peers are timed on {STEPS} steps and multiplied, without decoding; quality is not measured here"
    yield Row("sample_image", "image", calls, factors=factors, note=note)


def autoencoder(setting: Setting) -> Iterator[Row]:
    """Encoding and decoding images of 256 px."""
    codec, count = setting.pipe.codec.eval(), 1 if setting.tiny else 4
    image, latents = torch.rand(count, 1, 256, 256, device=setting.device), setting.latents(count)
    size: Any = {"channels": (16, 32, 64, 256), "num_res_blocks": (1, 1, 2, 2), "norm_num_groups": 8}
    size |= {"attention_levels": (False,) * 4, "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    networks: dict[str, Any] = {"ours": codec, "MONAI": AutoencoderKL(2, 1, 1, latent_channels=4, **size)}
    if HAS_DIFFUSERS:
        from diffusers import AutoencoderKL as TheirAutoencoder

        networks["diffusers"] = TheirAutoencoder(
            **{"in_channels": 1, "out_channels": 1, "latent_channels": 4, "norm_num_groups": 8},
            **{"layers_per_block": 1, "block_out_channels": (16, 32, 64, 256), "mid_block_add_attention": False},
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    networks = {name: network.to(setting.device).eval() for name, network in networks.items()}
    for verb, content in (("encode", image), ("decode", latents)):
        calls = {name: partial(one_pass, network, verb, content) for name, network in networks.items()}
        note = "one residual block per level in diffusers: fewer parameters" if HAS_DIFFUSERS else ""
        yield Row(verb, f"{count} images of 256 px", calls, size_of(networks), note=note)


@torch.inference_mode()
def one_pass(network: nn.Module, verb: str, content: Tensor) -> None:
    """Encode, decode or segment; we decode as samples are decoded."""
    is_quick = verb == "decode" and isinstance(network, LatentCodec)
    with quick_inference(network, content.device, amp=False) if is_quick else nullcontext():
        getattr(network, verb)(content)


def caching(setting: Setting) -> Iterator[Row]:
    """A step from cached latents and tokens, and one that encodes its images first."""
    step, batch = own_step(setting), random_batch(setting, setting.batch_size)
    images = torch.rand(setting.batch_size, 1, 256, 256, device=setting.device)

    def on_the_fly() -> None:
        step({**batch, **{name: value.clone() for name, value in encoded(setting, images).items()}})

    calls: Calls = {"from the store": partial(step, batch), "encoding on the fly": on_the_fly}
    yield Row("caching", f"step of batch {setting.batch_size}", calls, note="without reading files")


@torch.inference_mode()
def encoded(setting: Setting, images: Tensor) -> dict[str, Tensor]:
    """What the store holds of images; tensors of inference mode, which no step takes."""
    mean, std = setting.pipe.codec.posterior(images)
    return {
        **named_tokens(setting.pipe.encoder, images, setting.pipe.patch_grid),
        "latents_mean": mean,
        "latents_std": std,
    }


def bundles(setting: Setting) -> Iterator[Row]:
    """Training and use of each bundle by batch size: what a GPU is checked by."""
    pipe = setting.pipe
    segmenter = DentalSegmenter.from_bundle(BUNDLES / "dental_radiograph_segmentation", setting.device)
    codec, dental = deepcopy(pipe.codec).requires_grad_(), deepcopy(segmenter.network).requires_grad_()
    averages = [ExponentialMovingAverage(network, 0.999) for network in (codec, dental)]
    of_codec: Any = {"reconstruction_loss": ReconstructionLoss(None, 0.0), "kl_weight": 1e-6, "patch_size": 256}
    train_codec = AutoencoderStep(ema=averages[0], full_size_from_step=1, **of_codec)
    train_dental = SegmentationStep(ema=averages[1], loss_function=DiceCELoss(to_onehot_y=True, softmax=True))
    engines = engine_of(setting, VariationalPass(codec)), engine_of(setting, dental)
    train_denoiser = own_step(setting)
    for count in (1,) if setting.tiny else BATCH_SIZES:
        numbers = torch.arange(count)
        images, panoramics = torch.rand(count, 1, 256, 256), torch.rand(count, 1, 144, 192)
        labels = torch.randint(dental.num_classes, panoramics.shape)
        tokens = torch.randn(count, *pipe.network.context_encoder.scaler.tokens_mean.shape)
        calls: Calls = {
            "autoencoder: a step": partial(train_codec, engines[0], {"image": images, "draw": numbers}),
            "diffusion: a step": partial(train_denoiser, random_batch(setting, count)),
            "diffusion: images, 20 steps": partial(pipe.image_sampler.sample, tokens, list(range(count))),
            "dental: a step": partial(
                train_dental, engines[1], {"image": panoramics, "label": labels, "draw": numbers}
            ),
            "dental: masks": partial(one_pass, segmenter.network, "forward", panoramics.to(setting.device)),
        }
        for name, call in calls.items():
            yield Row("bundles", f"batch of {count}", {name: call})
