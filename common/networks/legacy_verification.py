"""Does a converted network give what monai-generative's gave? Both are run on the same input and compared."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .legacy import LegacyCheckpointError, core_class

TOLERANCE = 5e-5  # of an output's scale; float32 sums in another order stay below 2e-6, a wrong flag gives above 5e-2
_TIMESTEPS = (0, 371, 999)


class LegacyVerificationError(LegacyCheckpointError):
    """The converted network does not give the outputs of the old one."""


class MissingGenerativeError(UserError, ImportError):
    """monai-generative, needed to verify against, cannot be imported."""


def verify_against_generative(
    kind: str,
    legacy_arguments: Mapping[str, Any],
    legacy_state: Mapping[str, Tensor],
    network: nn.Module,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> float:
    """Compare every output of a converted network with the old network's, in evaluation mode on a seeded input.

    Args:
        kind: "autoencoder_kl" (compared: mean, sigma, decoded mean) or "diffusion_model_unet" (compared:
            the output for three timesteps, with context and classes where it has them).
        legacy_arguments: constructor arguments of the old network.
        legacy_state: its state dict.
        network: the converted float32 network, on any device.
        tolerance: largest accepted absolute difference, as a fraction of the largest absolute old output.
        seed: of the input.

    Returns:
        The largest such fraction over all outputs.

    Raises:
        MissingGenerativeError: monai-generative is not installed.
        LegacyVerificationError: a difference above the tolerance, or outputs that cannot show any.
    """
    device = next(network.parameters()).device
    legacy, arguments = _build_legacy(kind, legacy_arguments, legacy_state)
    outputs = _autoencoder_outputs if kind == "autoencoder_kl" else _unet_outputs
    was_training = network.training
    try:
        with torch.no_grad():
            expected = outputs(legacy.to(device).eval(), arguments, device, seed)
            found = outputs(network.eval(), arguments, device, seed)
    finally:
        network.train(was_training)
    differences = {name: _relative_difference(found[name], expected[name]) for name in expected}
    if bad := {name: value for name, value in differences.items() if not value <= tolerance}:  # NaN is bad, too
        named = ", ".join(f"{name} by {value:.2g}" for name, value in bad.items())
        raise LegacyVerificationError(
            f"{kind}: the converted network differs from monai-generative's: {named} of the output's scale; expected "
            f"at most {tolerance:g}"
        )
    return max(differences.values())


def _generative_nets() -> Any:
    """Import the only part of monai-generative that works with monai 1.6: not its schedulers, losses or engines."""
    try:
        return importlib.import_module("generative.networks.nets")
    except ImportError as error:
        raise MissingGenerativeError(
            f"Found no working monai-generative ({error}); expected it to verify against: pip install monai-generative"
        ) from error


def _build_legacy(
    kind: str, legacy_arguments: Mapping[str, Any], legacy_state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the old network with its weights, and all its constructor arguments, defaults included."""
    legacy_class = getattr(_generative_nets(), core_class(kind).__name__)
    try:
        bound = inspect.signature(legacy_class).bind(**{**legacy_arguments, "use_flash_attention": False})
        bound.apply_defaults()
        legacy = legacy_class(**bound.arguments)
        legacy.load_state_dict(dict(legacy_state), strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LegacyCheckpointError(f"{kind}: monai-generative refuses arguments or state dict: {error}") from error
    return legacy, dict(bound.arguments)


def _seeded_image(arguments: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Noise whose lowest resolution is 4: over a single position attention would be the same whatever its weights."""
    size = 4 * 2 ** (len(arguments["num_channels"]) - 1)
    shape = (len(_TIMESTEPS), arguments["in_channels"], *[size] * arguments["spatial_dims"])
    return torch.randn(shape, generator=generator)


def _autoencoder_outputs(
    network: Any, arguments: Mapping[str, Any], device: torch.device, seed: int
) -> dict[str, Tensor]:
    image = _seeded_image(arguments, torch.Generator().manual_seed(seed)).to(device)
    mean, sigma = network.encode(image)
    return {"mean": mean, "sigma": sigma, "decoded mean": network.decode(mean)}


def _unet_outputs(network: Any, arguments: Mapping[str, Any], device: torch.device, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = _seeded_image(arguments, generator).to(device)
    conditions: dict[str, Tensor] = {}
    if arguments["with_conditioning"]:
        shape = (len(_TIMESTEPS), 4, arguments["cross_attention_dim"])  # over one token attention is constant
        conditions["context"] = torch.randn(shape, generator=generator).to(device)
    if arguments["num_class_embeds"] is not None:
        conditions["class_labels"] = torch.arange(len(_TIMESTEPS), device=device) % arguments["num_class_embeds"]
    output = network(image, torch.tensor(_TIMESTEPS, device=device), **conditions)
    return {f"output at timestep {timestep}": part for timestep, part in zip(_TIMESTEPS, output, strict=True)}


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max()
    if scale == 0:
        raise LegacyVerificationError(
            "Found an old output of nothing but zeros, as an untrained network gives; expected one to compare with"
        )
    return ((found - expected).abs().max() / scale).item()
