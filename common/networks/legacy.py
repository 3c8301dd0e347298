"""Checkpoints written with the archived monai-generative, in MONAI core's networks, with the same outputs.

The networks moved to core under other names and flags. Core's own `load_old_state_dict` is not used, because on
monai 1.6.1 it changes results without a word: with the default flags it loads `proj_attn`, which the old forward never
applied; tensors that it does not find keep their random initialisation; those that it does not know it drops. Here
every tensor of the file is loaded or known to be unused, and every parameter of the core network is filled.
"""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from torch import Tensor, nn

from ..errors import UserError

KINDS: dict[str, type[nn.Module]] = {"autoencoder_kl": AutoencoderKL, "diffusion_model_unet": DiffusionModelUNet}
_CORE_TO_LEGACY_ARGUMENT = {"channels": "num_channels", "use_checkpoint": "use_checkpointing"}
_CORE_ONLY_ARGUMENTS = {"include_fc", "use_combined_linear"}
_CORE_TO_LEGACY_KEY = (
    (re.compile(r"\.attn\.(to_[qkv])\."), r".\1."),  # self-attention got a module of its own
    (re.compile(r"\.out_proj\."), ".to_out.0."),  # of the transformer blocks
    (re.compile(r"\.postconv\."), ".conv."),  # after nearest-neighbour upsampling
)
_UNUSED_KEY = re.compile(r"(.+)\.proj_attn\.(?:weight|bias)")
_ENTRIES = ("state_dict", "model_state_dict", "model", "network", "net", "autoencoder", "diffusion", "unet")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError)  # all that torch.load gave
_NAMED_KEYS = 4  # in a message


class LegacyCheckpointError(UserError, ValueError):
    """A legacy checkpoint, or the arguments it is said to belong to, cannot be converted without changing results."""


def read_legacy_state(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read a legacy state dict, plain or inside a training checkpoint, without the prefixes that wrappers add.

    Args:
        path: of a file written by `torch.save`. Nothing but tensors and plain values is ever unpickled.
        entry: key of the state dict inside the checkpoint; None to take the only one, or the only one with a
            customary name ("state_dict", "model", "diffusion", ...).

    Raises:
        LegacyCheckpointError: no readable file, or none or several state dicts in it.
    """
    if not Path(path).is_file():
        raise LegacyCheckpointError(f"{path}: found no file; expected a legacy checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise LegacyCheckpointError(
            f"{path}: found no file of tensors and plain values ({type(error).__name__}); expected a state dict saved "
            "by torch.save. A pickled module has to be saved again as its state_dict(), where its code is trusted"
        ) from error
    state = _select_state(content, entry, str(path))
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
        LegacyCheckpointError: an unknown kind or argument, or one that core cannot reproduce.
    """
    core_names = inspect.signature(core_class(kind)).parameters.keys() - _CORE_ONLY_ARGUMENTS
    names = {_CORE_TO_LEGACY_ARGUMENT.get(name, name): name for name in core_names}
    if unknown := sorted(legacy_arguments.keys() - names.keys()):
        raise LegacyCheckpointError(
            f"{kind}: found the arguments {', '.join(unknown)}; expected those of monai-generative's constructor: "
            f"{', '.join(sorted(names))}"
        )
    if legacy_arguments.get("use_convtranspose"):
        raise LegacyCheckpointError(
            f"{kind}: found use_convtranspose, whose kernel was 3 pixels wide; core's has 2, so expected False"
        )
    arguments = {names[name]: value for name, value in legacy_arguments.items() if name != "use_flash_attention"}
    conditional = bool(legacy_arguments.get("with_conditioning", False))
    return {**arguments, "include_fc": conditional, "use_combined_linear": False}


def build_core_network(kind: str, legacy_arguments: Mapping[str, Any]) -> nn.Module:
    """Build the core network for `core_arguments`, with its random initialisation.

    Raises:
        LegacyCheckpointError: arguments that `core_arguments` or core's constructor refuses.
    """
    arguments = core_arguments(kind, legacy_arguments)
    try:
        return core_class(kind)(**arguments)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise LegacyCheckpointError(f"{kind}: core's constructor refuses {arguments}: {error}") from error


def convert_state_dict(network: nn.Module, legacy_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a legacy state dict's keys to those of the core network; nothing is left out unless known to be unused.

    Args:
        network: from `build_core_network`; only its keys and shapes are read, so it may be on the meta device.
        legacy_state: of the old network.

    Raises:
        LegacyCheckpointError: keys or shapes do not belong to this architecture.
    """
    wanted = network.state_dict()
    sources = {key: _legacy_key(key) for key in wanted}
    expected = set(sources.values())
    missing = expected - legacy_state.keys()
    unknown = {key for key in legacy_state.keys() - expected if not _is_unused(key, expected)}
    reshaped = {
        f"{source} {tuple(legacy_state[source].shape)} instead of {tuple(wanted[key].shape)}"
        for key, source in sources.items()
        if source in legacy_state and legacy_state[source].shape != wanted[key].shape
    }
    if missing or unknown or reshaped:
        raise LegacyCheckpointError(
            f"The checkpoint does not fit {type(network).__name__} with these arguments. "
            f"Found but not expected: {_named(unknown)}. Expected but not found: {_named(missing)}. "
            f"Of another shape: {_named(reshaped)}. Give the constructor arguments that the checkpoint was trained with"
        )
    return {key: legacy_state[source] for key, source in sources.items()}


def load_legacy_network(
    kind: str, legacy_arguments: Mapping[str, Any], legacy_state: Mapping[str, Tensor]
) -> nn.Module:
    """Return the core network that gives what the old network gave.

    Args:
        kind: "autoencoder_kl" or "diffusion_model_unet".
        legacy_arguments: constructor arguments of the old network, under their old names.
        legacy_state: its state dict, for example from `read_legacy_state`; it is left as it is.

    Raises:
        LegacyCheckpointError: arguments or state dict cannot be converted without changing results.
    """
    network = build_core_network(kind, legacy_arguments)
    network.load_state_dict(convert_state_dict(network, legacy_state), strict=True)
    return network


def core_class(kind: str) -> type[nn.Module]:
    """The core network of a kind.

    Raises:
        LegacyCheckpointError: there is no such kind.
    """
    if kind not in KINDS:
        raise LegacyCheckpointError(f"Found the kind {kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[kind]


def _select_state(content: Any, entry: str | None, source: str) -> dict[str, Tensor]:
    if entry is None and _is_state(content):
        return dict(content)
    inside = content if isinstance(content, Mapping) else {}
    states = {key: value for key, value in inside.items() if _is_state(value)}
    names = [entry] if entry is not None else list(states)
    if len(names) > 1:
        names = [name for name in names if name in _ENTRIES]
    if len(names) != 1 or names[0] not in states:
        wish = "exactly one" if entry is None else f"one at {entry!r}"
        found = ", ".join(map(str, states)) or f"none ({type(content).__name__}: {_named(map(str, inside))})"
        raise LegacyCheckpointError(f"{source}: found state dicts at: {found}; expected {wish}. Name it by `entry`")
    return dict(states[names[0]])


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _legacy_key(core_key: str) -> str:
    for pattern, replacement in _CORE_TO_LEGACY_KEY:
        core_key = pattern.sub(replacement, core_key)
    return core_key


def _is_unused(legacy_key: str, expected: Collection[str]) -> bool:
    """Tell the linear layer that an old `AttentionBlock` owned and never applied (MONAI issue 7991)."""
    match = _UNUSED_KEY.fullmatch(legacy_key)
    return match is not None and f"{match[1]}.to_q.weight" in expected


def _named(keys: Any) -> str:
    ordered = sorted(keys)
    more = f" and {len(ordered) - _NAMED_KEYS} more" if len(ordered) > _NAMED_KEYS else ""
    return (", ".join(ordered[:_NAMED_KEYS]) or "none") + more
