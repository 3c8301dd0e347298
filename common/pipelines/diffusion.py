"""Radiographs from DINO embeddings: sampled, varied, interpolated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import check_numbers
from ..data.dataset import RadiographDataset
from ..data.transforms import center_square
from ..data.typical_images import load_typical
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.noise_schedule import NoiseSchedule
from ..diffusion.samplers import Method, Sampler
from ..diffusion.token_sampler import TokenSampler
from ..errors import SettingsError
from ..fingerprint import file_sha256, json_sha256
from ..networks.conditioning import TokenScaler, TokenSelection, named_tokens
from ..networks.dino import DinoEncoder
from ..networks.latent_codec import LatentCodec
from ..networks.latent_denoiser import LatentDenoiser
from ..networks.weights import described, load_described
from ..seeding import sample_seed
from .inpainting import Inpainting, Mask, masks_of, open_hole
from .inputs import Image, OpenBundle, as_list, as_radiograph, pick_device
from .interpolation import Interpolation, InterpolationMode
from .source_table import SourceTable, encode_sources
from .strategies import Neighbourhood, Prior, SampleRequest, Strategy, Variation

StrategyName = Literal["variation", "interpolation", "neighbourhood", "inpainting", "prior"]


@dataclass(eq=False, repr=False)
class DinoDiffusion:
    """The generator, of radiographs in any form (see `as_radiograph`). Each part is loaded when it is first needed.

    Args:
        models_dir: with the shipped weights, which also say what weights from before 1.0 are.
        device: such as "cpu"; "auto" takes a GPU where there is one.
        weights_path: of another denoiser; beside it lies what schedule, tokens and image size it is for. So are
            `codec_path` of another autoencoder, `prior_path` of another prior over tokens.
        dino_source: Hugging Face folder or hub id of the encoder, if another one.
        network: the denoiser, where it is loaded already.
        num_inference_steps: of the image sampler.
        sampling_method: dpm_solver++_2m, ddim, euler or heun.
        guidance_scale: of classifier-free guidance; 1 is none.
        guidance_interval: noise levels that are guided, 0 the clean end; a shorter one costs less.
        prior_steps: of the prior's sampler.
        prior_guidance_scale: towards the label.
        amp: bfloat16 where the hardware has it; False for the same result on other hardware.
        batch_size: images at a time.

    Raises:
        WeightsError: the denoiser's weights are missing or damaged; those of other parts say so later.
        SettingsError: settings out of range.
    """

    models_dir: str | Path
    device: str | torch.device = "auto"
    weights_path: str | Path | None = None
    codec_path: str | Path | None = None
    prior_path: str | Path | None = None
    dino_source: str | Path | None = None
    network: LatentDenoiser = None  # type: ignore[assignment]  # None: as the weights say
    num_inference_steps: int = 20
    sampling_method: Method = "dpm_solver++_2m"
    guidance_scale: float = 1.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    prior_steps: int = 50
    prior_guidance_scale: float = 1.0
    amp: bool = True
    batch_size: int = 8
    _opened: OpenBundle | None = None  # what was unpacked is needed as long as parts may be loaded

    def __post_init__(self) -> None:
        check_numbers(batch_size=self.batch_size)
        self.device = pick_device(self.device)
        shipped = Path(self.models_dir)
        self.dino_source = self.dino_source or shipped / "dinov2_vits14"
        self._denoiser = self.weights_path or shipped / "model.pt", shipped / "model.pt"
        self._codec = self.codec_path or shipped / "autoencoder.pt", shipped / "autoencoder.pt"
        self._prior = self.prior_path or shipped / "prior.pt", shipped / "prior.pt"
        self.network = (self.network or self._loaded(self._denoiser)).to(self.device).eval()
        self.schedule: NoiseSchedule = self._said("schedule")
        self.selection: TokenSelection = self._said("selection")
        self.patch_grid: int = self._said("cached_patch_grid")
        self.image_size: int = self._said("image_size")
        guided = self.guidance_scale, self.guidance_interval
        self.sampler = Sampler(self.schedule, self.sampling_method, self.num_inference_steps, "lambda", *guided)
        self.typical = load_typical(self._denoiser[0])

    @classmethod
    def from_bundle(
        cls, bundle: str | os.PathLike[str], device: str | torch.device = "auto", **settings: Any
    ) -> DinoDiffusion:
        """The shipped weights of a bundle, a folder or a zip; settings as of the class.

        Raises:
            WeightsError: there are none, or they are damaged.
        """
        opened = OpenBundle(bundle)
        return cls(opened.models, device, **settings, _opened=opened)

    # ---- parts -------------------------------------------------------------------------------------------------------

    @cached_property
    def codec(self) -> LatentCodec:
        """The autoencoder."""
        return self._loaded(self._codec)

    @cached_property
    def encoder(self) -> DinoEncoder:
        """The frozen DINO encoder."""
        return DinoEncoder(str(self.dino_source), self._said("dino_image_size")).to(self.device)

    @cached_property
    def token_sampler(self) -> TokenSampler:
        """The prior over tokens."""
        schedule = described(self._prior[0], "schedule", self._prior[1])
        sampler = Sampler(schedule, "dpm_solver++_2m", self.prior_steps, guidance_scale=self.prior_guidance_scale)
        return TokenSampler(self._loaded(self._prior), sampler, self.device)

    @cached_property
    def image_sampler(self) -> ImageSampler:
        """From tokens and seeds to images."""
        return ImageSampler(self.network, self.codec, self.sampler, self.image_size, self.amp, self.device)

    @property
    def scaler(self) -> TokenScaler:
        """Standardises tokens."""
        return self.network.context_encoder.scaler

    def _loaded(self, paths: tuple[str | Path, Path]) -> Any:
        return load_described(paths[0], self.device, paths[1])

    def _said(self, part: str) -> Any:
        return described(self._denoiser[0], part, self._denoiser[1])

    # ---- images ------------------------------------------------------------------------------------------------------

    def sample(self, num_samples: int = 1, seed: int = 0, label: str | None = None) -> Tensor:
        """Radiographs without a source, [num_samples, 1, S, S] in [0, 1] on the CPU, for a label or for any.

        They are those of inference.yaml with this seed.

        Raises:
            SettingsError: no images, or an unknown label.
        """
        return self._images(Prior(self.token_sampler, num_samples, label, seed))

    def vary(self, image: Image, num_samples: int = 1, seed: int = 0) -> Tensor:
        """Variations of one radiograph, [num_samples, 1, S, S] in [0, 1] on the CPU.

        Raises:
            UnreadableRadiographError: it cannot be read, or no such pixels.
        """
        return self._images(Variation(self._table([image]), num_samples, seed))

    def interpolate(
        self, first: Image, second: Image, num_samples: int = 7, seed: int = 0, mode: InterpolationMode = "slerp"
    ) -> Tensor:
        """A strip from one radiograph to another, [num_samples, 1, S, S] in [0, 1] on the CPU; one noise for all.

        Both ends are among them. Between standardised tokens it goes along the great circle, with lerp straight.

        Raises:
            UnreadableRadiographError: one that cannot be read, or no such pixels.
            SettingsError: less than one image, or an unknown mode.
        """
        between = Interpolation(self._table([first, second]), num_samples, mode, (0.0, 1.0), self.scaler, seed)
        mixes = torch.linspace(0.0, 1.0, num_samples).tolist()
        return self._images(between, [SampleRequest("", sample_seed(seed, 0), (0, 1), mix) for mix in mixes])

    def inpaint(self, image: Image, mask: Mask, num_samples: int = 1, seed: int = 0) -> Tensor:
        """Draw what a mask covers anew, [num_samples, 1, H, W] in [0, 1] on the CPU, of the radiograph's own size.

        The mask is [H, W], not 0 where to draw, or a PNG or NIfTI. Outside it the radiograph comes back bit by bit.

        Raises:
            UnreadableRadiographError: image or mask cannot be read, or no such pixels.
            SettingsError: the mask has another size, covers nothing or all, or is longer than the shorter side.
        """
        radiograph = as_radiograph(image)
        open_hole(radiograph, mask)  # refuses before anything is encoded
        return self._images(Inpainting(self._table([radiograph]), [(radiograph, mask)], num_samples, seed))

    @torch.inference_mode()
    def encode(self, images: Image | Sequence[Image]) -> Tensor:
        """Tokens [B, N, D] that condition the denoiser, as the encoder gives them, on the CPU."""
        squares = [center_square(as_radiograph(image).pixels, self.image_size) for image in as_list(images)]
        tokens = named_tokens(self.encoder, torch.stack(squares).to(self.device), self.patch_grid)
        return self.selection.select(tokens).cpu()

    def _table(self, images: Sequence[Image]) -> SourceTable:
        names = [str(number) for number in range(len(images))]
        return SourceTable(names, names, [""] * len(images), self.encode(list(images)))

    def _images(self, strategy: Strategy, requests: Sequence[SampleRequest] | None = None) -> Tensor:
        wanted = strategy.requests() if requests is None else requests
        batches = [wanted[start : start + self.batch_size] for start in range(0, len(wanted), self.batch_size)]
        return torch.stack([image for batch in batches for image in strategy.images(self.image_sampler, batch)])


def choose_strategy(
    pipeline: DinoDiffusion,
    name: StrategyName,
    dataset: RadiographDataset,
    cache_dir: str,
    seed: int,
    num_samples: int,
    num_per_source: int,
    label: str | None,
    interpolation_mode: InterpolationMode,
    mix_range: tuple[float, float],
    num_neighbours: int,
    noise_scale: float,
    dataset_dir: str = "",
    masks: str | None = None,
) -> Strategy:
    """The strategy of a run of inference.yaml; sources are encoded, or the prior loaded, only where they are needed.

    `cache_dir` keeps the tokens of the `dataset`, whose images lie in `dataset_dir`; `masks` are as of `masks_of`, and
    the other settings as of the strategy's class: `num_samples` of `prior` and `interpolation`, `num_per_source` of the
    others.

    Raises:
        SettingsError: unknown strategy, or settings and sources that do not allow it.
    """
    if name == "prior":
        return Prior(pipeline.token_sampler, num_samples, label, seed)
    if label is not None:
        raise SettingsError(
            f"label: expected null with the strategy {name}, found {label!r}; only prior is conditioned on a label, "
            "images of the others keep that of their sources"
        )
    if name not in get_args(StrategyName):
        raise SettingsError(f"strategy: expected one of {', '.join(get_args(StrategyName))}, found {name!r}")
    parts = pipeline.encoder, pipeline.selection, pipeline.patch_grid, pipeline.batch_size, pipeline.device
    table = encode_sources(dataset, *parts, cache_dir, pipeline.typical)
    if name == "inpainting":
        found = masks_of(table.paths, dataset_dir, masks)
        digest = json_sha256([file_sha256(path) for path in found])
        masked = list(zip(table.paths, found, strict=True))
        return Inpainting(table, masked, num_per_source, seed, masks_sha256=digest)
    if name == "variation":
        return Variation(table, num_per_source, seed)
    if name == "interpolation":
        return Interpolation(table, num_samples, interpolation_mode, mix_range, pipeline.scaler, seed)
    return Neighbourhood(table, num_per_source, num_neighbours, noise_scale, pipeline.scaler, seed)
