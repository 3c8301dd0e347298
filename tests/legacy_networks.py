"""Old and new networks with the same weights, small, for the tests of legacy checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.networks.legacy import KINDS

generative_nets = pytest.importorskip("generative.networks.nets")
AUTOENCODER, UNET = "autoencoder_kl", "diffusion_model_unet"
NO_ATTENTION = {
    "attention_levels": [False, False],
    **dict.fromkeys(("with_encoder_nonlocal_attn", "with_decoder_nonlocal_attn"), False),
}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": 6}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder without attention": (AUTOENCODER, NO_ATTENTION),
    "autoencoder with attention at a level": (AUTOENCODER, {**NO_ATTENTION, "attention_levels": [False, True]}),
    "autoencoder with attention in the encoder": (AUTOENCODER, {**NO_ATTENTION, "with_encoder_nonlocal_attn": True}),
    "autoencoder with attention in the decoder": (AUTOENCODER, {**NO_ATTENTION, "with_decoder_nonlocal_attn": True}),
    "autoencoder with attention everywhere": (AUTOENCODER, {"attention_levels": [True, True]}),
    "volume autoencoder": (AUTOENCODER, {"spatial_dims": 3, "attention_levels": [False, False]}),
    "unet": (UNET, {}),
    "unet with attention in the middle only": (UNET, {"attention_levels": [False, False]}),
    "unet with classes": (UNET, {"num_class_embeds": 3}),
    "unet with residual up- and downsampling": (UNET, {"resblock_updown": True}),
    "conditional unet": (UNET, CONDITIONED),
    "conditional unet, two layers": (UNET, {**CONDITIONED, "transformer_num_layers": 2, "upcast_attention": True}),
    "conditional unet with all": (
        UNET,
        {**CONDITIONED, "num_class_embeds": 3, "resblock_updown": True, "num_head_channels": [0, 8]},
    ),
    "conditional unet with dropout": (UNET, {**CONDITIONED, "dropout_cattn": 0.5, "num_head_channels": 6}),
    # narrow twins of the chest X-ray LDM in the generative model zoo
    "published conditional unet": (
        UNET,
        {
            **{"in_channels": 3, "out_channels": 3, "num_channels": [4, 8, 12], "num_head_channels": [0, 8, 12]},
            **{"num_res_blocks": 2, "attention_levels": [False, True, True], "norm_eps": 1e-6, **CONDITIONED},
        },
    ),
    "published autoencoder without attention": (
        AUTOENCODER,
        {
            **{"latent_channels": 3, "num_channels": [4, 8, 8, 8], "num_res_blocks": 2, "norm_eps": 1e-6},
            **{**NO_ATTENTION, "attention_levels": [False] * 4},
        },
    ),
}
SILENTLY_WRONG_IN_MONAI = [name for name in CASES if "attention" in name.replace("without attention", "")] + [
    "volume autoencoder",
    "unet",
    "unet with classes",
    "unet with residual up- and downsampling",
]


def legacy_arguments(kind: str, overrides: dict[str, Any]) -> dict[str, Any]:
    base = {"spatial_dims": 2, "num_res_blocks": 1, "num_channels": [8, 16], "norm_num_groups": 4}
    own = {"latent_channels": 2} if kind == AUTOENCODER else {"in_channels": 2, "out_channels": 2}
    levels = {"attention_levels": [False, True]}
    return {**base, **own, **levels, **overrides}


def randomised(network: nn.Module) -> nn.Module:
    """Give every parameter its own random values: zero-initialised layers and unit norms would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            offset = 0.0 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5 + offset)
    return network.eval()


def old_network(kind: str, arguments: dict[str, Any]) -> nn.Module:
    return randomised(getattr(generative_nets, KINDS[kind].__name__)(**arguments))


def monai_loaded(kind: str, arguments: dict[str, Any], state: dict[str, Tensor], **flags: bool) -> nn.Module:
    """What a user of core gets who renames `num_channels` and calls its own loader."""
    renamed = {("channels" if name == "num_channels" else name): value for name, value in arguments.items()}
    network: Any = KINDS[kind](**renamed, **flags)
    network.load_old_state_dict(dict(state))
    return network.eval()


@torch.no_grad()
def outputs(network: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """All outputs for a fixed input, written apart from the code under test."""
    torch.manual_seed(11)
    if "latent_channels" in arguments:
        image = torch.randn(1, 1, *[16] * arguments["spatial_dims"])
        mean, sigma = network.encode(image)
        return [mean, sigma, network.decode(torch.randn_like(mean)), network.reconstruct(image), *network(image)]
    image, timesteps = torch.randn(4, arguments["in_channels"], 16, 16), torch.tensor([0, 10, 500, 999])
    context = torch.randn(4, 3, 6) if arguments.get("with_conditioning") else None
    classes = torch.tensor([2, 0, 1, 1]) if arguments.get("num_class_embeds") else None
    return [network(image, timesteps, context=context, class_labels=classes)]


def difference(found: nn.Module, expected: nn.Module, arguments: dict[str, Any]) -> float:
    """Largest difference of any output, in units of that output's scale."""
    pairs = zip(outputs(found, arguments), outputs(expected, arguments), strict=True)
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)
