"""Which parts of which network are exported as files of their own, with inputs to export and to check them with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Examples = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
DynamicAxes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Part:
    """A part of a network that becomes a file of its own.

    Attributes:
        name: of the file, without its ending.
        module: from tensors to one tensor, in eval mode.
        examples: inputs to export with, and others with other sizes along all dynamic axes; drawn with a seed.
        input_names: as many as the module takes.
        output_name: of the one output.
        dynamic_axes: of inputs and output: number of the axis to its name.
    """

    name: str
    module: nn.Module
    examples: Examples
    input_names: tuple[str, ...]
    output_name: str
    dynamic_axes: DynamicAxes


class Encoder(nn.Module):
    """Image [B, 1, H, W] in [0, 1] to a codec's scaled latents, from the mean of the posterior."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, image: Tensor) -> Tensor:
        """Encode, drawing nothing."""
        return self.codec.encode(image)


class Decoder(nn.Module):
    """Scaled latents of a codec to an image [B, 1, H, W] clipped to [0, 1]."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        return self.codec.decode(latents)


def codec_parts(codec: Any, whole: bool) -> list[Part]:
    """Encoder and decoder of a `LatentCodec`; and, where it is the bundle's whole network, the way there and back."""
    factor = codec.downsampling_factor
    images = _draw((2, 1, 4 * factor, 6 * factor)), _draw((1, 1, 6 * factor, 5 * factor))
    latents = _draw((2, codec.latent_channels, 4, 6), normal=True), _draw((1, codec.latent_channels, 6, 5), normal=True)
    image, small = _axes(), _axes("latent_")
    parts = [
        _part("encoder", Encoder(codec), images, "image", "latents", (image, small)),
        _part("decoder", Decoder(codec), latents, "latents", "image", (small, image)),
    ]
    return [_part("network", codec, images, "image", "pred", (image, image)), *parts] if whole else parts


def latent_denoiser_parts(denoiser: Any, whole: bool) -> list[Part]:
    """A `LatentDenoiser`: noisy latents, timesteps and context to the prediction of the noise schedule's type."""
    del whole  # there is one part
    factor, tokens = denoiser.downsampling_factor, denoiser.null_context.shape[1:]

    def inputs(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        noisy = _draw((batch, denoiser.latent_channels, height * factor, width * factor), normal=True)
        return noisy, 1000 * _draw((batch,)), _draw((batch, *tokens), normal=True)

    image, batch = _axes(), {0: "batch"}
    axes = {"image": image, "timesteps": batch, "context": batch, "pred": image}
    examples = inputs(2, 2, 3), inputs(1, 3, 2)
    return [Part("denoiser", denoiser.eval(), examples, ("image", "timesteps", "context"), "pred", axes)]


def pixel_denoiser_parts(denoiser: Any, whole: bool) -> list[Part]:
    """A `PixelDenoiser`: noisy image and timesteps to the prediction."""
    del whole
    factor = denoiser.downsampling_factor

    def inputs(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return _draw((batch, 1, height * factor, width * factor), normal=True), 1000 * _draw((batch,))

    axes = {"image": _axes(), "timesteps": {0: "batch"}, "pred": _axes()}
    return [Part("denoiser", denoiser.eval(), (inputs(2, 2, 3), inputs(1, 3, 2)), ("image", "timesteps"), "pred", axes)]


def segmenter_parts(segmenter: Any, whole: bool) -> list[Part]:
    """A `DiffusionSegmenter`: image to logits, at sizes that it pads too."""
    del whole
    factor = segmenter.downsampling_factor
    images = _draw((2, 1, 2 * factor, 3 * factor)), _draw((1, 1, 3 * factor - 1, 2 * factor + 1))
    return [_part("network", segmenter, images, "image", "pred", (_axes(), _axes()))]


PARTS: dict[str, Callable[[Any, bool], list[Part]]] = {
    "LatentCodec": codec_parts,
    "LatentDenoiser": latent_denoiser_parts,
    "PixelDenoiser": pixel_denoiser_parts,
    "DiffusionSegmenter": segmenter_parts,
}
"""Class of a network, by name because a packaged bundle has classes of its own, to what gives its parts; it is told
whether the network is the bundle's `network_def` or one that helps it."""


def _part(
    name: str,
    module: nn.Module,
    values: tuple[Tensor, Tensor],
    input_name: str,
    output_name: str,
    axes: tuple[dict[int, str], dict[int, str]],
) -> Part:
    """A part with one input."""
    examples = (values[0],), (values[1],)
    named_axes = dict(zip((input_name, output_name), axes, strict=True))
    return Part(name, module.eval(), examples, (input_name,), output_name, named_axes)


def _axes(prefix: str = "") -> dict[int, str]:
    return {0: "batch", 2: f"{prefix}height", 3: f"{prefix}width"}


def _draw(shape: tuple[int, ...], normal: bool = False) -> Tensor:
    """Numbers that are the same each time: uniform in [0, 1], or normal."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(shape, generator=generator) if normal else torch.rand(shape, generator=generator)
