"""What a generation gets its images from: embeddings and a latent denoiser, or noise and a denoiser of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ..data.transforms import load_square
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.pixel_image_sampler import PixelImageSampler
from ..diffusion.samplers import Sampler
from ..errors import UserError
from ..fingerprint import network_sha256
from ..io.image_writer import trim_padding
from ..seeding import sample_seed
from .embedding_strategies import Strategy
from .sample_request import SampleRequest
from .source_table import SourceTable


class ImageSourceError(UserError, ValueError):
    """The knobs of a source of images are out of range."""


class ImageSource(Protocol):
    """Lists the images of a run, and makes a few of them at a time.

    Attributes:
        name: how the images are chosen, the column `strategy` of the manifest.
        table: the images that they come from; None without.
        rule: the sampler of the images.
        weights_sha256: of the network that draws them.
        settings: what a run must share to continue a folder, in plain JSON types; not the number of images where that
            may grow.
    """

    name: str
    table: SourceTable | None
    rule: Sampler
    weights_sha256: str
    settings: dict[str, Any]

    def requests(self) -> list[SampleRequest]:
        """All images of the run, always in the same order."""
        ...

    def images(self, requests: Sequence[SampleRequest]) -> Sequence[Tensor]:
        """Some of them, each [1, H, W] in [0, 1] on the CPU; they need not have one size."""
        ...

    def source_images(self, request: SampleRequest) -> list[Tensor]:
        """What one of them comes from, each [1, H, W] in [0, 1], for the contact sheet."""
        ...


class EmbeddedImages:
    """Images of embeddings that a strategy chooses.

    Args:
        strategy: chooses the embeddings.
        sampler: tokens and seeds to images.
    """

    def __init__(self, strategy: Strategy, sampler: ImageSampler) -> None:
        self.strategy = strategy
        self.sampler = sampler
        self.name = strategy.name
        self.table = strategy.table
        self.rule = sampler.sampler
        self.weights_sha256 = network_sha256(sampler.denoiser)
        self.settings = {
            **_rule_settings(self.rule),
            "codec_sha256": network_sha256(sampler.codec),
            "guidance_interval": list(self.rule.guidance_interval),
            "amp": sampler.amp,
            "image_size": sampler.image_size,
            **strategy.settings,
        }

    def requests(self) -> list[SampleRequest]:
        """Those of the strategy."""
        return self.strategy.requests()

    def images(self, requests: Sequence[SampleRequest]) -> Sequence[Tensor]:
        """Square, all of one size."""
        return list(self.sampler.sample(self.strategy.tokens(requests), [request.seed for request in requests]))

    def source_images(self, request: SampleRequest) -> list[Tensor]:
        """As the encoder saw them, at the size of the samples."""
        if self.table is None:
            return []
        return [load_square(self.table.paths[source], self.sampler.image_size) for source in request.sources]


class UnconditionalImages:
    """Images from noise alone.

    Args:
        sampler: seeds to images.
        num_samples: images; a folder may be given more later.
        seed: of the run.
        trim: cut off the black padding, so that the images have the aspect ratio of radiographs, and sizes of their
            own; with other batches a pixel next to the threshold may move their border by a line.

    Raises:
        ImageSourceError: less than one image.
    """

    name = "unconditional"

    def __init__(self, sampler: PixelImageSampler, num_samples: int, seed: int, trim: bool) -> None:
        if num_samples < 1:
            raise ImageSourceError(f"num_samples: expected at least 1, found {num_samples}")
        self.sampler = sampler
        self.num_samples = num_samples
        self.seed = seed
        self.trim = trim
        self.table: SourceTable | None = None
        self.rule = sampler.sampler
        self.weights_sha256 = network_sha256(sampler.denoiser)
        schedule, timesteps = self.rule.schedule, self.rule.timesteps
        self.settings = {
            **_rule_settings(self.rule),
            "eta": self.rule.eta,
            "prediction_type": schedule.prediction_type,
            "timesteps": timesteps.tolist(),
            # Tells one table from another; rounded, as other hardware may differ in the last digits.
            "middle_log_snr": round(schedule.log_snr(timesteps[len(timesteps) // 2, None]).item(), 2),
            "amp": sampler.amp,
            "image_size": list(sampler.image_size),
            "trim": trim,
        }

    def requests(self) -> list[SampleRequest]:
        """Numbered."""
        return [SampleRequest(f"{number:04d}", sample_seed(self.seed, number)) for number in range(self.num_samples)]

    def images(self, requests: Sequence[SampleRequest]) -> Sequence[Tensor]:
        """Each of the size that trimming leaves."""
        images = list(self.sampler.sample([request.seed for request in requests]))
        return [trim_padding(image) for image in images] if self.trim else images

    def source_images(self, request: SampleRequest) -> list[Tensor]:
        """None."""
        return []


def _rule_settings(rule: Sampler) -> dict[str, Any]:
    return {
        "method": rule.method,
        "num_inference_steps": len(rule.timesteps),
        "guidance_scale": rule.guidance_scale,
    }
