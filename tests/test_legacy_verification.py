"""A network that gives other outputs than the old one is found out."""

from __future__ import annotations

import sys

import pytest
import torch
from legacy_networks import AUTOENCODER, CONDITIONED, NO_ATTENTION, UNET, generative_nets, legacy_arguments, old_network

from common.networks.legacy import load_legacy_network
from common.networks.legacy_verification import (
    LegacyVerificationError,
    MissingGenerativeError,
    verify_against_generative,
)

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore:.*autocast")]


@pytest.mark.parametrize("projection", ["attn1.to_q", "attn1.to_v", "attn2.to_k"])
def test_verification_leaves_the_mode_and_notices_one_changed_row(projection):
    arguments = legacy_arguments(UNET, {**CONDITIONED, "dropout_cattn": 0.5})
    state = old_network(UNET, arguments).state_dict()
    new = load_legacy_network(UNET, arguments, state).train()
    verify_against_generative(UNET, arguments, state, new)
    assert new.training
    with torch.no_grad():
        new.get_parameter(f"middle_block.attention.transformer_blocks.0.{projection}.weight")[0] += 1
    with pytest.raises(LegacyVerificationError, match="timestep 371 by"):
        verify_against_generative(UNET, arguments, state, new)


def test_verification_refuses_what_proves_nothing():
    arguments = legacy_arguments(UNET, {})
    untrained = generative_nets.DiffusionModelUNet(**arguments).state_dict()
    new = load_legacy_network(UNET, arguments, untrained)
    with pytest.raises(LegacyVerificationError, match="nothing but zeros"):
        verify_against_generative(UNET, arguments, untrained, new)
    broken = {key: torch.full_like(value, float("nan")) for key, value in untrained.items()}
    with pytest.raises(LegacyVerificationError, match="by nan"):
        verify_against_generative(UNET, arguments, broken, load_legacy_network(UNET, arguments, broken))


def test_without_generative_conversion_works_and_verification_says_what_is_missing(monkeypatch):
    arguments = legacy_arguments(AUTOENCODER, NO_ATTENTION)
    state = old_network(AUTOENCODER, arguments).state_dict()
    monkeypatch.setitem(sys.modules, "generative.networks.nets", None)
    new = load_legacy_network(AUTOENCODER, arguments, state)
    with pytest.raises(MissingGenerativeError, match="pip install monai-generative"):
        verify_against_generative(AUTOENCODER, arguments, state, new)
