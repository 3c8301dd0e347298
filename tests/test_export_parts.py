"""Parts of networks: what they compute, and examples that would show a size that is baked in."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tiny_denoiser
from tiny_bundles import SEGMENTER, measured_codec

from common.networks.diffusion_segmenter import DiffusionSegmenter
from common.networks.pixel_denoiser import PixelDenoiser
from common.packaging.export_parts import PARTS

PIXELS = {"channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True], "num_head_channels": 8}


@pytest.mark.parametrize(
    ("network", "parts_of_it"),
    [
        (measured_codec(), ["network", "encoder", "decoder"]),
        (make_tiny_denoiser(), ["denoiser"]),
        (PixelDenoiser(**PIXELS, norm_num_groups=4), ["denoiser"]),
        (DiffusionSegmenter(**SEGMENTER), ["network"]),
    ],
)
@torch.no_grad()
def test_examples_fit_and_differ_along_every_dynamic_axis(network, parts_of_it):
    parts = PARTS[type(network).__name__](network, True)
    assert [part.name for part in parts] == parts_of_it
    for part in parts:
        outputs = [part.module(*inputs) for inputs in part.examples]
        names = *part.input_names, part.output_name
        first, second = ((*inputs, output) for inputs, output in zip(part.examples, outputs, strict=True))
        for name, one, other in zip(names, first, second, strict=True):
            differing = {axis for axis in range(one.ndim) if one.shape[axis] != other.shape[axis]}
            assert differing == set(part.dynamic_axes[name])


@torch.no_grad()
def test_encoder_takes_the_mean_and_decoder_undoes_its_scaling():
    codec = measured_codec()
    encoder, decoder = PARTS["LatentCodec"](codec, False)
    image = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(encoder.module(image), codec.scale(codec.posterior(image)[0]))
    torch.testing.assert_close(decoder.module(encoder.module(image)), codec(image), atol=1e-5, rtol=0)
