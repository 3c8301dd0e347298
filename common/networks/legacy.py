"""Checkpoints written with the archived monai-generative, in MONAI core's networks, with the same outputs.

The networks moved to core under other names and flags. Core's `load_old_state_dict` renames the tensors, but on monai
1.6.1 it changes results without a word: with the default flags it loads `proj_attn`, which the old forward never
applied; tensors that it does not find keep what they were; those that it does not know it drops. Here the flags are
chosen so that results stay, and every tensor must find its place. Where monai-generative is installed, both networks
can be run on one input and compared.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from torch import Tensor, nn

from ..errors import WeightsError
from .weights import load_plain

KINDS: dict[str, type[nn.Module]] = {"autoencoder_kl": AutoencoderKL, "diffusion_model_unet": DiffusionModelUNet}
TOLERANCE = 5e-5  # of an output's scale; float32 sums in another order stay below 2e-6, a wrong flag gives above 5e-2
_CORE_TO_LEGACY_ARGUMENT = {"channels": "num_channels", "use_checkpoint": "use_checkpointing"}
_CORE_ONLY_ARGUMENTS = {"include_fc", "use_combined_linear"}
_ENTRIES = ("state_dict", "model_state_dict", "model", "network", "net", "autoencoder", "diffusion", "unet")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError)  # all that torch.load gave
_TIMESTEPS = (0, 371, 999)


def read_legacy_state(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read a legacy state dict, plain or inside a training checkpoint, without the prefixes that wrappers add.

    Args:
        path: of a file written by `torch.save`. Nothing but tensors and plain values is ever unpickled.
        entry: key of the state dict inside the checkpoint; None to take the only one, or the only one with a
            customary name ("state_dict", "model", "diffusion", ...).

    Raises:
        WeightsError: no readable file, or none or several state dicts in it.
    """
    try:
        content = load_plain(path)
    except (OSError, *_UNREADABLE) as error:
        raise WeightsError(
            f"{path}: found no file of tensors and plain values ({type(error).__name__}); expected a state_dict saved "
            "by torch.save. A pickled module has to be saved again as its state_dict(), where its code is trusted"
        ) from error
    inside = content if isinstance(content, Mapping) else {}
    states = {key: value for key, value in inside.items() if _is_state(value)}
    names = [entry] if entry is not None else list(states)
    if len(names) > 1:
        names = [name for name in names if name in _ENTRIES]
    if entry is None and _is_state(content):
        state = dict(content)
    elif len(names) == 1 and names[0] in states:
        state = dict(states[names[0]])
    else:
        wish = "exactly one" if entry is None else f"one at {entry!r}"
        raise WeightsError(f"{path}: found state dicts at: {_few(states)}; expected {wish}. Name it by `entry`")
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def core_arguments(kind: str, legacy_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translate constructor arguments of the old network into those of the core network with the same outputs.

    `include_fc` decides whether core's self-attention ends in a linear layer. The old `AttentionBlock` (autoencoder,
    unconditional UNet) had one, `proj_attn`, and never applied it; the old transformer blocks (conditional UNet)
    applied theirs. `use_flash_attention` only said how to compute, with xformers, and is dropped.

    Args:
        kind: "autoencoder_kl" or "diffusion_model_unet".
        legacy_arguments: as given to `generative.networks.nets.AutoencoderKL` or `.DiffusionModelUNet`.

    Raises:
        WeightsError: an unknown kind or argument, or one that core cannot reproduce.
    """
    if kind not in KINDS:
        raise WeightsError(f"found the kind {kind!r}; expected one of {', '.join(KINDS)}")
    core_names = inspect.signature(KINDS[kind]).parameters.keys() - _CORE_ONLY_ARGUMENTS
    names = {_CORE_TO_LEGACY_ARGUMENT.get(name, name): name for name in core_names}
    if unknown := legacy_arguments.keys() - names.keys():
        raise WeightsError(
            f"{kind}: found the arguments {_few(sorted(unknown))}; expected those of monai-generative's constructor: "
            f"{', '.join(sorted(names))}"
        )
    if legacy_arguments.get("use_convtranspose"):
        raise WeightsError(
            f"{kind}: found use_convtranspose, whose kernel was 3 pixels wide; core's has 2, so expected False"
        )
    arguments = {names[name]: value for name, value in legacy_arguments.items() if name != "use_flash_attention"}
    conditional = bool(legacy_arguments.get("with_conditioning", False))
    return {**arguments, "include_fc": conditional, "use_combined_linear": False}


def load_legacy_network(
    kind: str, legacy_arguments: Mapping[str, Any], legacy_state: Mapping[str, Tensor]
) -> nn.Module:
    """Return the core network that gives what the old network gave.

    Args:
        kind: "autoencoder_kl" or "diffusion_model_unet".
        legacy_arguments: constructor arguments of the old network, under their old names.
        legacy_state: its state dict, for example from `read_legacy_state`; it is left as it is.

    Raises:
        WeightsError: arguments or state dict cannot be converted without changing results.
    """
    arguments = core_arguments(kind, legacy_arguments)
    try:
        network: Any = KINDS[kind](**arguments)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{kind}: core's constructor refuses {arguments}: {error}") from error
    for value in network.state_dict().values():
        value.fill_(torch.nan)  # so that what gets no value is found
    # The linear layer that an old AttentionBlock owned and never applied (MONAI issue 7991).
    never_applied = {
        f"{block}.proj_attn.{part}"
        for block in (key.removesuffix(".to_q.weight") for key in legacy_state if key.endswith(".to_q.weight"))
        for part in ("weight", "bias")
    }
    left = {key: value for key, value in legacy_state.items() if key not in never_applied}
    try:
        network.load_old_state_dict(left)  # takes out what it finds a place for
        problem = ""
    except (KeyError, RuntimeError) as error:
        problem = f" {' '.join(str(error).split())[:300]}."
    empty = [key for key, value in network.state_dict().items() if value.isnan().any()]
    unknown = left.keys() - network.state_dict().keys()
    if problem or empty or unknown:
        raise WeightsError(
            f"the checkpoint does not fit {type(network).__name__} with these arguments.{problem} Without place: "
            f"{_few(sorted(unknown))}. Without finite values: {_few(empty)}. Give the constructor arguments that the "
            "checkpoint was trained with"
        )
    return network


def verify_against_generative(
    kind: str, legacy_arguments: Mapping[str, Any], legacy_state: Mapping[str, Tensor], network: nn.Module
) -> float:
    """Compare every output of a converted network with the old network's, in evaluation mode on a seeded input.

    Args:
        kind: "autoencoder_kl" (compared: mean, sigma, decoded mean) or "diffusion_model_unet" (compared: the output
            for three timesteps, with context and classes where it has them).
        legacy_arguments: constructor arguments of the old network.
        legacy_state: its state dict.
        network: the converted float32 network, on any device.

    Returns:
        The largest absolute difference over all outputs, as a fraction of the largest absolute old output.

    Raises:
        ImportError: monai-generative is not installed.
        WeightsError: a difference above `TOLERANCE`, or outputs that cannot show any, as an untrained network's.
    """
    try:  # the only part that works with monai 1.6: not its schedulers, losses or engines
        nets = importlib.import_module("generative.networks.nets")
    except ImportError as error:
        raise ImportError(f"no working monai-generative ({error}); pip install monai-generative") from error
    legacy_class = getattr(nets, KINDS[kind].__name__)
    bound = inspect.signature(legacy_class).bind(**{**legacy_arguments, "use_flash_attention": False})
    bound.apply_defaults()
    legacy = legacy_class(**bound.arguments)
    legacy.load_state_dict(dict(legacy_state), strict=True)
    device, was_training = next(network.parameters()).device, network.training
    inputs = {name: value.to(device) for name, value in _inputs(bound.arguments).items()}
    with torch.no_grad():
        found, old = (_outputs(kind, each.to(device).eval(), inputs) for each in (network, legacy))
    network.train(was_training)
    scales = [(one - other).abs().max() / other.abs().max() for one, other in zip(found, old, strict=True)]
    differences = [scale.item() for scale in scales]
    if not all(value <= TOLERANCE for value in differences):  # NaN, as of zeros, is above
        shares = _few(f"{value:.2g}" for value in differences)
        raise WeightsError(
            f"{kind}: the converted network differs from monai-generative's by {shares} of the outputs' scale; "
            f"expected at most {TOLERANCE:g}"
        )
    return max(differences)


def _inputs(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arguments for a call of a network that was made with these."""
    generator = torch.Generator().manual_seed(0)
    number, size = len(_TIMESTEPS), 4 * 2 ** (len(arguments["num_channels"]) - 1)  # over one position attention is idle
    shape = (number, arguments["in_channels"], *[size] * arguments["spatial_dims"])
    inputs = {"x": torch.randn(shape, generator=generator)}
    if arguments.get("with_conditioning"):
        inputs["context"] = torch.randn(number, 4, arguments["cross_attention_dim"], generator=generator)
    if arguments.get("num_class_embeds") is not None:
        inputs["class_labels"] = torch.arange(number) % arguments["num_class_embeds"]
    return inputs


def _outputs(kind: str, network: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    if kind == "autoencoder_kl":
        mean, sigma = network.encode(inputs["x"])
        return [mean, sigma, network.decode(mean)]
    return list(network(timesteps=torch.tensor(_TIMESTEPS, device=inputs["x"].device), **inputs))


def _is_state(value: Any) -> bool:
    is_mapping = isinstance(value, Mapping) and len(value) > 0
    return is_mapping and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())


def _few(names: Iterable[object], count: int = 4) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:count] or ["none"]) + (f" and {len(texts) - count} more" if len(texts) > count else "")
