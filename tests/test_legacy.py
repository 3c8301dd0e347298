"""Checkpoints of monai-generative give the same outputs in core's networks, or are refused."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import WeightsError
from common.networks.legacy import (
    KINDS,
    core_arguments,
    load_legacy_network,
    read_legacy_state,
    verify_against_generative,
)

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore:.*autocast")]
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


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_those_of_generative_where_monai_own_loader_changes_them_too(case):
    kind, overrides = CASES[case]
    arguments = legacy_arguments(kind, overrides)
    old = old_network(kind, arguments)
    state = {key: value.clone() for key, value in old.state_dict().items()}
    new = load_legacy_network(kind, arguments, state).eval()
    assert difference(new, old, arguments) < 1e-5
    assert verify_against_generative(kind, arguments, state, new) < 1e-5
    assert state.keys() == old.state_dict().keys(), "MONAI's loader empties the caller's dict; ours must not"
    if case in SILENTLY_WRONG_IN_MONAI:
        wrong = monai_loaded(kind, arguments, state)
        assert difference(wrong, old, arguments) > 0.02
        with pytest.raises(WeightsError):
            verify_against_generative(kind, arguments, state, wrong)


def test_flags_and_names_of_the_core_arguments():
    for kind in KINDS:
        found = core_arguments(kind, legacy_arguments(kind, {"use_flash_attention": True}))
        assert found["channels"] == [8, 16]
        assert (found["include_fc"], found["use_combined_linear"]) == (False, False)
        assert "use_flash_attention" not in found and "num_channels" not in found
    assert core_arguments(UNET, legacy_arguments(UNET, CONDITIONED))["include_fc"] is True
    assert core_arguments(AUTOENCODER, {"use_checkpointing": True})["use_checkpoint"] is True


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_that_the_old_arguments_leave_out_are_the_same_in_core(kind):
    """Omitted arguments are not translated, so core's defaults have to stay monai-generative's."""
    old = inspect.signature(getattr(generative_nets, KINDS[kind].__name__)).parameters
    new = inspect.signature(KINDS[kind]).parameters
    for name, parameter in old.items():
        core_name = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}.get(name, name)
        assert new[core_name].default == parameter.default, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decoder.blocks.2.conv.conv.weight", None),
        ("encoder.blocks.0.conv.weight", None),  # which MONAI's own loader would leave random
        ("discriminator.weight", torch.zeros(1)),
        ("encoder.blocks.0.proj_attn.weight", torch.zeros(8, 8)),  # where there is no attention
        ("encoder.blocks.0.conv.bias", torch.zeros(9)),
        ("encoder.blocks.0.conv.bias", torch.full((8,), torch.nan)),
    ],
)
def test_a_state_dict_that_does_not_fit_exactly_is_refused_by_name(name: str, value: Tensor | None):
    arguments = legacy_arguments(AUTOENCODER, NO_ATTENTION)
    state = {**old_network(AUTOENCODER, arguments).state_dict(), name: value}
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(WeightsError, match=name.replace(".conv.conv.", ".(post)?conv.conv.")):
        load_legacy_network(AUTOENCODER, arguments, state)


def test_the_wrong_architecture_is_refused_in_one_short_message():
    state = old_network(UNET, legacy_arguments(UNET, CONDITIONED)).state_dict()
    for kind in (UNET, AUTOENCODER):
        with pytest.raises(WeightsError, match=r"down_blocks|conv_in") as refusal:
            load_legacy_network(kind, legacy_arguments(kind, {}), state)
        assert len(str(refusal.value)) < 900


@pytest.mark.parametrize(
    ("kind", "overrides", "named"),
    [
        ("vqvae", {}, "autoencoder_kl"),
        (AUTOENCODER, {"channels": [8, 16]}, "num_channels"),
        (AUTOENCODER, {"include_fc": True}, "include_fc"),
        (AUTOENCODER, {"use_convtranspose": True}, "use_convtranspose"),
        (UNET, {"use_checkpointing": True}, "use_checkpointing"),
        (UNET, {"num_channels": [8, 15]}, "15"),
        (UNET, {"attention_levels": [True, True], "num_head_channels": [0, 8]}, "num_head_channels"),
    ],
)
def test_arguments_that_core_cannot_reproduce_are_refused(kind, overrides, named):
    with pytest.raises(WeightsError, match=named):
        load_legacy_network(kind, legacy_arguments(kind, overrides), {})


STATE = {"conv.weight": torch.arange(3.0), "conv.bias": torch.ones(2)}
OTHER = {"head.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (STATE, None),
        ({"module." + key: value for key, value in STATE.items()}, None),
        ({"module._orig_mod." + key: value for key, value in STATE.items()}, None),
        ({"epoch": 3, "state_dict": STATE, "discriminator": OTHER, "best_loss": 0.5, "optimizer": {"state": {}}}, None),
        ({"epoch": 3, "diffusion": {"module." + key: value for key, value in STATE.items()}}, None),
        ({"weights of the third try": STATE, "step": 7}, None),
        ({"state_dict": STATE, "best": np.float64(0.5), "epoch": np.int64(3), "amp": np.bool_(True)}, None),
        ({"unet": STATE, "autoencoder": OTHER}, "unet"),
        ({"ema": STATE, "model": OTHER}, "ema"),
    ],
)
def test_state_dicts_are_found_in_every_customary_wrapping(tmp_path, content, entry):
    torch.save(content, tmp_path / "old.pt")
    found = read_legacy_state(tmp_path / "old.pt", entry)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize(
    ("content", "entry", "named"),
    [
        ({"unet": STATE, "autoencoder": OTHER}, None, "unet, autoencoder"),
        ({"unet": STATE}, "model", "'model'"),
        ({"epoch": 3, "lr": 0.1}, None, "none"),
        ([1, 2], None, "none"),
        ({}, None, "none"),
        (nn.Linear(2, 2), None, "state_dict"),
    ],
)
def test_files_without_one_state_dict_are_refused(tmp_path, content, entry, named):
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(WeightsError, match=named):
        read_legacy_state(tmp_path / "old.pt", entry)


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "absent"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "old.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"old\.pt"):
        read_legacy_state(tmp_path / "old.pt")


@pytest.mark.parametrize("projection", ["attn1.to_q", "attn1.to_v", "attn2.to_k"])
def test_verification_leaves_the_mode_and_notices_one_changed_row(projection):
    arguments = legacy_arguments(UNET, {**CONDITIONED, "dropout_cattn": 0.5})
    state = old_network(UNET, arguments).state_dict()
    new = load_legacy_network(UNET, arguments, state).train()
    verify_against_generative(UNET, arguments, state, new)
    assert new.training
    with torch.no_grad():
        new.get_parameter(f"middle_block.attention.transformer_blocks.0.{projection}.weight")[0] += 1
    with pytest.raises(WeightsError):
        verify_against_generative(UNET, arguments, state, new)


def test_verification_refuses_outputs_of_zeros_which_prove_nothing():
    arguments = legacy_arguments(UNET, {})
    untrained = generative_nets.DiffusionModelUNet(**arguments).state_dict()
    with pytest.raises(WeightsError):
        verify_against_generative(UNET, arguments, untrained, load_legacy_network(UNET, arguments, untrained))


def test_without_generative_conversion_works_and_verification_says_what_is_missing(monkeypatch):
    arguments = legacy_arguments(AUTOENCODER, NO_ATTENTION)
    state = old_network(AUTOENCODER, arguments).state_dict()
    monkeypatch.setitem(sys.modules, "generative.networks.nets", None)
    new = load_legacy_network(AUTOENCODER, arguments, state)
    with pytest.raises(ImportError, match="monai-generative"):
        verify_against_generative(AUTOENCODER, arguments, state, new)
