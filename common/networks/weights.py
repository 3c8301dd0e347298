"""Weights that describe themselves: a state dict, and beside it a JSON that says what it is of and what it must be.

`model.pt` has `model.json`: the network's class and arguments, whatever else using it needs (noise schedule, token
selection, classes), and the file's SHA-256. So a network is described once, where it is trained, and nothing that uses
the weights can disagree with them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..files import atomic_path, read_json, write_json
from ..fingerprint import file_sha256

Class = TypeVar("Class", bound=type)
Network = TypeVar("Network", bound=nn.Module)

PACKAGE = __package__.rpartition(".")[0]  # `common`, or where a packaged bundle keeps its copy
FORMAT = 1
NETWORK = "network"
NO_WEIGHTS = "{}: no weights there; expected the file that training writes or the bundle ships"


# ---- descriptions ----------------------------------------------------------------------------------------------------


def recorded(made: Class) -> Class:
    """Class decorator: instances keep the arguments they were made with as `arguments`, for `describe`."""
    init: Any = vars(made)["__init__"]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is not made:
            return  # a subclass; it records its own
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        vars(self)["arguments"] = {name: _plain(value) for name, value in list(bound.arguments.items())[1:]}

    made.__init__ = recording  # type: ignore[misc]
    return made


def describe(item: Any) -> dict[str, Any]:
    """Class and arguments of an instance of a `recorded` class, in JSON types; the inverse of `build`."""
    module = type(item).__module__.removeprefix(PACKAGE)
    return {"_target_": f"{module}.{type(item).__qualname__}", **item.arguments}


def build(described: Mapping[str, Any]) -> Any:
    """The object that `describe` described; only classes of this package are built.

    Raises:
        WeightsError: no such class, or not with these arguments.
    """
    arguments = dict(described)
    target = str(arguments.pop("_target_", None))
    module, _, name = target.rpartition(".")
    try:
        if not target.startswith("."):
            raise ImportError("not a class of this package")
        return getattr(importlib.import_module(PACKAGE + module), name)(**arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise WeightsError(f"weights are described as of {target}, which cannot be built here: {error}") from error


def described(path: str | Path, part: str = NETWORK, default: str | Path | None = None, **changes: Any) -> Any:
    """Build a part of what weights say they are, such as their network or noise schedule.

    Args:
        path: of the weights.
        part: key of the description.
        default: of the weights whose description counts where these have none (from before 1.0).
        changes: arguments that go before those described, such as `dropout`, which MONAI Label's stock app sets.

    Raises:
        WeightsError: no description, or none of this part.
    """
    found = read_description(path, default)
    if part not in found:
        raise WeightsError(f"{description_path(path)}: found {', '.join(found)}, expected {part}")
    is_built = isinstance(found[part], dict) and "_target_" in found[part]
    return build({**found[part], **changes}) if is_built else found[part]


def other_parts(path: str | Path) -> dict[str, Any]:
    """What the description of weights holds beside their network; empty where there is none."""
    found = read_description(path) if description_path(path).is_file() else {}
    return {name: part for name, part in found.items() if name not in ("format", "sha256", "replaces", NETWORK)}


def description_path(path: str | Path) -> Path:
    """Where the description of weights is."""
    return Path(path).with_suffix(".json")


def read_description(path: str | Path, default: str | Path | None = None) -> dict[str, Any]:
    """What weights say they are; see `described`.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    beside = description_path(path)
    if not beside.is_file() and default is not None and Path(path).is_file():
        beside = description_path(default)
    if not beside.is_file() and not Path(path).is_file():
        raise WeightsError(NO_WEIGHTS.format(path))
    if not beside.is_file():
        raise WeightsError(f"{beside} is missing: it says what {path} is; copy it from where the weights came from")
    try:
        return read_json(beside)
    except ValueError as error:
        raise WeightsError(f"{beside} is damaged ({error}); copy it again from where the weights came from") from error


# ---- files -----------------------------------------------------------------------------------------------------------


def save_weights(
    network: nn.Module, path: str | Path, parts: Mapping[str, Any] | None = None, half: bool = False
) -> None:
    """Write a network's state dict and its description, so that a kill at any moment leaves a pair that loads.

    Args:
        network: of a `recorded` class; of another class no description is written.
        path: of the weights.
        parts: what else the description holds: objects of `recorded` classes, or plain JSON.
        half: in half precision, for shipping.
    """
    state = half_precision(network.state_dict()) if half else network.state_dict()
    if not hasattr(network, "arguments"):
        save_atomically(state, path)
        return
    others = {name: describe(part) if hasattr(part, "arguments") else part for name, part in (parts or {}).items()}
    with atomic_path(path) as temporary:
        _write(state, temporary)
        description = {"format": FORMAT, "sha256": file_sha256(temporary), NETWORK: describe(network), **others}
        if Path(path).is_file():
            description["replaces"] = file_sha256(path)  # until the new file is in its place
        write_json(description_path(path), description)


def save_atomically(state: Mapping[str, Any], path: str | Path) -> None:
    """Write `state` to `path` so that a kill at any moment leaves the old file or the new one, never half of one."""
    with atomic_path(path) as temporary:
        _write(state, temporary)


def _write(state: Mapping[str, Any], path: Path) -> None:
    """By way of memory: of a full disk torch itself says only that its writer failed."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    path.write_bytes(content.getbuffer())


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float16 for shipping; the latent statistics and everything that is not float32 stay as they are."""
    return {
        key: value.half() if value.dtype == torch.float32 and "latents_" not in key else value
        for key, value in state.items()
    }


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU.

    Raises:
        WeightsError: no such file, no state dict, numbers that are not finite, or other bytes than described.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(NO_WEIGHTS.format(path))
    if description_path(path).is_file():
        description = read_description(path)
        expected = {description.get("sha256"), description.get("replaces")}
        if file_sha256(path) not in expected:
            raise WeightsError(
                f"{path} is damaged, or not what {description_path(path).name} describes; copy both again from where "
                "they came from"
            )
    try:
        state = load_plain(path)
    except Exception as error:  # a damaged file raises anything, with advice to load it without safeguard
        raise WeightsError(f"{path} is damaged or holds no weights ({type(error).__name__}); copy it again") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: found a {type(state).__name__} of other things, expected a state dict of tensors")
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{path}: {name} holds numbers that are not finite; take weights from before that")
    return state


def load_plain(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors, plain values, NumPy scalars; nothing else is ever unpickled."""
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(code)) for code in "?bhilqBHILQefdSU"]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # of NumPy 1 and 2
    with torch.serialization.safe_globals([*names, np.dtype, *kinds]):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(network: Network, path: str | Path) -> Network:
    """Load weights strictly and return the network in eval mode; half precision files become the network's dtype.

    Raises:
        WeightsError: as `read_weights`, or the file is of another network; names the first difference.
    """
    state = read_weights(path)
    difference = first_difference(network.state_dict(), state)
    if difference:
        raise WeightsError(f"{path} is of another network: {difference}; give weights of this network, or its settings")
    network.load_state_dict(state, strict=True)
    return network.eval()


def load_described(path: str | Path, device: torch.device | str = "cpu", default: str | Path | None = None) -> Any:
    """Build the network that weights say they are of, load them, and return it in eval mode on `device`.

    Raises:
        WeightsError: as of `described` and `load_weights`.
    """
    return load_weights(described(path, NETWORK, default), path).to(device)


def trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser is to have: those that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def first_difference(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first tensor of two state dicts that is missing, of another shape or not expected; None where all agree."""
    for name, value in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != value.shape:
            return f"{name} has shape {tuple(found[name].shape)}, expected {tuple(value.shape)}"
    unknown = next((name for name in found if name not in wanted), None)
    return None if unknown is None else f"{unknown} is not expected"


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, so that a description read again equals the one written."""
    return json.loads(json.dumps(value))
