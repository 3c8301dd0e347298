"""How fast this is, and how fast MONAI, diffusers and SciPy are at the same work, side by side.

python scripts/benchmark.py --output_dir OUT
python scripts/benchmark.py sample_step train_step --device cuda --output_dir OUT
python scripts/benchmark.py bundles --device cuda --output_dir OUT  # the check of a GPU
python scripts/benchmark.py cost --num_images 868394 --num_devices 8 --device cuda --output_dir OUT  # hours and GB

diffusers comes with the extra `bench`. OUT gets benchmark.md, benchmark.json, benchmark.png, of `bundles` gpu.md and of
`cost` cost.md.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from monai.transforms import Compose, LoadImage, Resize, ScaleIntensity
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.amp import quick_inference
from common.checks import check_device
from common.command_line import run_command
from common.data.latent_store import TOKENS, LatentStore
from common.data.phantom import draw_chest_phantom
from common.data.transforms import load_square
from common.diffusion.samplers import Sampler
from common.errors import SettingsError
from common.evaluation.distribution_metrics import frechet_distance, gaussian_mmd
from common.evaluation.nearest_patients import SPACES, CopyFeatures, NearestPatients
from common.evaluation.report import markdown_table
from common.experiments.benchmark import Row, draw, hardware, markdown, measure, predicted_costs
from common.experiments.lung_choice import EXCLUDED, Tuned
from common.experiments.lung_study import find_lungs
from common.files import TUNED, atomic_path, read_json, write_json
from common.io.image_writer import write_png
from common.io.synthetic_dicom import write_synthetic_dicom
from common.networks.conditioning import named_tokens
from common.networks.latent_codec import LatentCodec, VariationalPass
from common.networks.latent_denoiser import DenoisingPass
from common.pipelines import DentalSegmenter, DinoDiffusion
from common.provenance import provenance
from common.training.autoencoder_step import AutoencoderStep
from common.training.denoising_step import DenoisingStep
from common.training.ema import ExponentialMovingAverage
from common.training.losses import ReconstructionLoss
from common.training.segmentation_step import SegmentationStep

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
STEPS = 4  # of sampling, that are timed at once
FID_FEATURES = 2048
ITEMS = (10_000, 100_000, 868_394)  # the last is the paper's
BATCH_SIZES = (1, 8, 32, 128)
SIDE = 1024  # px, of the files to read
ITEM_TEXT_BYTES = 300  # of an item of the store: path, patient, label, split

Calls = dict[str, Callable[[], object]]

_logger = logging.getLogger(__name__)


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
        found: dict[str, nn.Module] = {
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


def own_step(setting: Setting) -> Callable[[dict[str, Any]], object]:
    """Our step of training the denoiser, as configs/train.yaml puts it together."""
    pipe, network = setting.pipe, deepcopy(setting.pipe.network).requires_grad_()
    ema = ExponentialMovingAverage(network, 0.999)
    step = DenoisingStep(schedule=pipe.schedule, selection=pipe.selection, uncond_prob=0.1, ema=ema)
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
    step, batch = own_step(setting), random_batch(setting, setting.batch_size)

    def of_peer(peer: nn.Module) -> Callable[[], object]:
        optimizer = torch.optim.AdamW(peer.parameters(), 1e-4, fused=True)
        average = AveragedModel(peer, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        x0, context = setting.latents(setting.batch_size), setting.context(setting.batch_size)

        def call() -> None:
            noise, share = torch.randn_like(x0), torch.rand(len(x0), 1, 1, 1, device=x0.device)
            output = predicted(peer, (1 - share) * x0 + share * noise, 1000 * share.flatten(), context)
            optimizer.zero_grad(set_to_none=True)
            mse_loss(output, noise - x0).backward()
            nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(peer)

        return call

    peers = setting.peers()
    calls: Calls = {"ours": partial(step, batch), **{name: of_peer(peer.train()) for name, peer in peers.items()}}
    yield Row(
        "train_step", f"step of batch {setting.batch_size}", calls, size_of({"ours": setting.pipe.network, **peers})
    )


def sample_step(setting: Setting) -> Iterator[Row]:
    """A step with guidance, both halves in one batch."""
    pipe = setting.pipe
    sampler = Sampler(pipe.schedule, "dpm_solver++_2m", STEPS, guidance_scale=2.0)
    peers = setting.peers()
    for count in (1,) if setting.tiny else (1, 8):
        context, noisy = setting.context(count), setting.latents(count)

        calls = {"ours": partial(own_steps, setting, sampler, context)}
        calls |= {name: partial(guided_steps, peer, noisy, context, STEPS) for name, peer in peers.items()}
        sizes = size_of({"ours": pipe.network, **peers})
        with quick_inference(pipe.network, setting.device, amp=False):  # once for all steps; part of `sample_image`
            yield Row("sample_step", f"step of batch {count}", calls, sizes, dict.fromkeys(calls, 1 / STEPS))


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
        "ours, 20 steps and decoding": lambda: pipe.image_sampler.sample(tokens, [0]),
        "MONAI, 50 steps of DDIM": partial(guided_steps, peer, noisy, context, STEPS),
        "MONAI, 1000 steps of DDPM": partial(guided_steps, peer, noisy, context, STEPS, ddpm=True),
    }
    factors = dict(zip(calls, (1.0, 50 / STEPS, 1000 / STEPS), strict=True))
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


def read(setting: Setting) -> Iterator[Row]:
    """Files of 1024 px to images of 256."""
    side = 128 if setting.tiny else SIDE
    pixels = draw_chest_phantom(side, side, 0)
    grey = Image.fromarray((255 * pixels[0]).round().byte().numpy())
    paths = {name: setting.folder / f"image.{name}" for name in ("png", "jpg", "dcm")}
    grey.save(paths["png"])
    grey.save(paths["jpg"], quality=90)
    about: Any = {"identity": "0", "model": "phantom", "description": "phantom", "bits": 16, "provenance": {}}
    write_synthetic_dicom(pixels, paths["dcm"], **about)
    load = Compose(
        [LoadImage(image_only=True, ensure_channel_first=True), ScaleIntensity(), Resize((256, 256), mode="area")]
    )
    for name, path in paths.items():
        yield Row(
            "read", f"{name} of {side} px", {"ours": partial(load_square, path, 256), "MONAI": partial(load, path)}
        )


def fid(setting: Setting) -> Iterator[Row]:
    """Fréchet distance of random features."""
    from monai.metrics import FIDMetric

    width = 64 if setting.tiny else FID_FEATURES
    for count in (48,) if setting.tiny else (552, 3000):
        one, other = (np.random.default_rng(seed).normal(size=(count, width)) for seed in (0, 1))
        theirs = torch.from_numpy(one), torch.from_numpy(other)
        calls: Calls = {"ours": partial(frechet_distance, one, other), "MONAI (sqrtm)": partial(FIDMetric(), *theirs)}
        yield Row("fid", f"{count} images, {width} features", calls)


def store(setting: Setting) -> Iterator[Row]:
    """Opening stores of sparse files, an item that is not in memory, and a batch that is."""
    counts = (100, 1_000) if setting.tiny else ITEMS
    folders = {f"{count:,} items": sparse_store(setting.folder / str(count), count) for count in counts}
    opens = {name: partial(LatentStore, folder) for name, folder in folders.items()}
    yield Row("store_open", "opening", opens, is_wall=True, note="memory is what opening adds to a process")
    opened, random = LatentStore(next(iter(folders.values()))), np.random.default_rng(0)
    path, number = opened.folder / "rows.npy", len(opened.items)
    written = np.load(path, mmap_mode="r+")
    written[:] = np.ones((), written.dtype)  # a sparse file has nothing to read
    written.flush()
    del written  # what is mapped cannot be forgotten
    held = [opened.row(item, 0) for item in range(32)]

    def forget() -> None:
        if hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    cold: Calls = {
        "one read": lambda: opened.row(int(random.integers(number)), 0),
        "memory map": lambda: np.load(path, mmap_mode="r")[random.integers(number), 0].tobytes(),
    }
    yield Row("store_item", "cold random item", cold, is_wall=True, before=forget)
    batch: Calls = {
        "store": lambda: opened.tokens(range(32)),
        "memory": lambda: [np.stack([row[name] for row in held]).astype(np.float32) for name in TOKENS],
    }
    yield Row("store_batch", "tokens of 32 warm items", batch)


def sparse_store(folder: Path, count: int) -> Path:
    """An empty store of so many items."""
    names = [f"/data/{number // 10:06d}/{number:07d}.png" for number in range(count)]
    items = [{"image": name, "patient_id": Path(name).parent.name, "split": "train"} for name in names]
    shapes = {"latents_mean": (4, 32, 32), "latents_std": (4, 32, 32), "cls_token": (384,)}
    shapes |= {"register_tokens": (0, 384), "patch_grid": (4, 4, 384)}
    LatentStore.allocate(folder, {"dataset_dir": "/data"}, items, 1, shapes)
    return folder


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


def segment(setting: Setting) -> Iterator[Row]:
    """A dental radiograph."""
    segmenter = DentalSegmenter.from_bundle(BUNDLES / "dental_radiograph_segmentation", setting.device)
    path = BUNDLES / "dental_radiograph_segmentation" / "samples" / "images" / "0000.png"
    yield Row("segment", "radiograph", {"ours": lambda: segmenter.segment(path)}, note="no peer is pre-trained for it")


def lungs(setting: Setting) -> Iterator[Row]:
    """The lungs of a radiograph, found without a segmenter."""
    tuned = Tuned.from_plain(read_json(BUNDLES / "cxr_dino_latent_diffusion" / "docs" / "zero_shot_lungs" / TUNED))
    image = draw_chest_phantom(256, 256, 0)
    calls = {"ours": torch.no_grad()(partial(find_lungs, setting.pipe, tuned, image, EXCLUDED))}
    yield Row("lungs", "radiograph", calls, note="of a phantom; no peer does it without masks")


def cost(setting: Setting) -> Iterator[Row]:
    """What `predicted_costs` reckons with: work on an image by what is done with it, and on a pair of images."""
    pipe, count, side = setting.pipe, setting.batch_size, 128 if setting.tiny else SIDE
    path, num_pairs = setting.folder / "cost.png", 40 if setting.tiny else 512
    write_png(draw_chest_phantom(side, side, 0), path)
    images = torch.rand(count, 1, 256, 256, device=setting.device)
    tokens = torch.randn(count, *pipe.network.context_encoder.scaler.tokens_mean.shape)
    embeddings = torch.randn(num_pairs, pipe.network.context_encoder.scaler.tokens_mean.shape[1])
    features = CopyFeatures(embeddings, torch.rand(num_pairs, 1, 32, 32))
    patients = NearestPatients(features, features, None, 5, 2)
    calls: Calls = {
        "reading": partial(load_square, path, 256),
        "encoding": partial(encoded, setting, images),
        "training": partial(own_step(setting), random_batch(setting, count)),
        "reconstruction": partial(one_pass, pipe.codec, "forward", images),
        "generation": partial(pipe.image_sampler.sample, tokens, list(range(count))),
        "features": partial(one_pass, pipe.encoder, "forward", images),
        "pair": partial(gaussian_mmd, embeddings, embeddings),
        "nearest": lambda: [patients.nearest(space, features, [()] * num_pairs) for space in SPACES],
    }
    factors = dict.fromkeys(calls, 1 / count) | {"reading": 1.0, "pair": num_pairs**-2, "nearest": num_pairs**-2}
    yield Row("cost", "image or pair", calls, factors=factors, note="different work, so the ratios say nothing")


def cost_table(
    setting: Setting, figures: list[dict[str, Any]], num_images: int, num_devices: int, num_epochs: int
) -> str:
    """What `predicted_costs` says, as a table."""
    dim = setting.pipe.network.context_encoder.scaler.tokens_mean.shape[1]
    latents, tokens = 2 * math.prod(setting.pipe.image_sampler.latents_shape), dim * (1 + setting.pipe.patch_grid**2)
    seconds = {each["contender"]: each["seconds"] for each in figures if each["row"] == "cost"}
    costs = predicted_costs(seconds, num_images, num_devices, num_epochs, 2 * (latents + tokens) + ITEM_TEXT_BYTES)
    lines = [[name, f"{hours:.3g}", f"{disk:.3g}", f"{memory:.3g}"] for name, (hours, disk, memory) in costs.items()]
    return markdown_table([f"{num_images:,} images", "hours", "GB on disk", "GB of memory"], lines)


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


def startup(setting: Setting) -> Iterator[Row]:
    """Imports of a command that generates images."""
    python = [sys.executable, "-W", "ignore", "-c"]
    codes = {"ours": "from common.pipelines import DinoDiffusion", "torch and MONAI": "import torch, monai.bundle"}
    calls = {name: partial(subprocess.run, [*python, code], check=True) for name, code in codes.items()}
    yield Row("startup", "process", calls, is_wall=True)


ALL = (train_step, sample_step, sample_image, autoencoder, read, fid, store, caching, segment, lungs, startup)
ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {each.__name__: each for each in (*ALL, bundles, cost)}


def benchmark(
    *rows: str,
    output_dir: str = "outputs/benchmark",
    device: str = "cpu",
    repetitions: int = 5,
    batch_size: int = 8,
    tiny: bool = False,
    num_images: int = ITEMS[-1],
    num_devices: int = 1,
    num_epochs: int = 40,
) -> None:
    """Measure rows, all of them where none is named; print the table, and write it, benchmark.json and benchmark.png.

    Args:
        *rows: train_step, sample_step, sample_image, autoencoder, read, fid, store, caching, segment, lungs, startup.
            Left out of all are bundles, which trains and uses the three bundles by batch size, and cost, which predicts
            hours and GB from a folder of radiographs to as many generated ones.
        output_dir: for the results.
        device: cpu or cuda.
        repetitions: of each call; one more comes before them and does not count.
        batch_size: of training steps.
        tiny: small files and few of them, to see that everything works.
        num_images: of the folder, for cost.
        num_devices: such as this one, for cost.
        num_epochs: of the denoiser's training, for cost.
    """
    if unknown := set(rows) - ROWS.keys():
        raise SettingsError(f"found rows {sorted(unknown)}; expected some of {', '.join(ROWS)}")
    if not HAS_DIFFUSERS:
        _logger.warning(
            "diffusers is not installed (pip install -e '.[bench]' -c scripts/constraints.txt): its columns are missing"
        )
    where, folder = check_device(device), Path(output_dir)
    figures: list[dict[str, Any]] = []
    about = {"hardware": hardware(where), **provenance(where), "repetitions": repetitions, "diffusers": HAS_DIFFUSERS}
    named = rows or [each.__name__ for each in ALL]
    with tempfile.TemporaryDirectory() as files:
        setting = Setting(where, batch_size, Path(files), tiny)
        for row in (row for name in named for row in ROWS[name](setting)):
            try:
                measured = measure(row, where, repetitions)
            except torch.OutOfMemoryError:
                _logger.warning("%s, %s: out of memory", ", ".join(row.contenders), row.unit)
                continue
            print(markdown(measured), flush=True)
            figures += measured
    texts = {"benchmark.md": markdown(figures)}
    if "cost" in rows:
        texts["cost.md"] = cost_table(setting, figures, num_images, num_devices, num_epochs)
        print(texts["cost.md"])
    if "bundles" in rows:
        not_yet = "This has not run on a GPU yet: these figures are of a CPU."
        began = "Measured on a GPU." if where.type == "cuda" else not_yet
        texts["gpu.md"] = f"{began}\n\n{markdown(figures)}\n```json\n{json.dumps(about, indent=1)}\n```\n"
    write_json(folder / "benchmark.json", {**about, "rows": figures})
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    draw(figures, folder / "benchmark.png")
    print(f"{folder}: benchmark.md, benchmark.json, benchmark.png")


if __name__ == "__main__":
    run_command(benchmark)
